"""Names and addresses of this machine on the network. Standard library only."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_SIOCGIFADDR = 0x8915


def boot_id() -> str:
    """Identifies a machine: equal for processes under one kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def addresses() -> Iterator[str]:
    """This machine's IPv4 addresses except loopback: what its name resolves to first, then each interface's."""
    seen: set[str] = set()
    try:
        named = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except OSError:
        named = []
    for address in [*named, *(address_of(name) for _, name in socket.if_nameindex())]:
        if address and not str(address).startswith("127.") and address not in seen:
            seen.add(str(address))
            yield str(address)


def address_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface[:15].encode())
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:
            return None
