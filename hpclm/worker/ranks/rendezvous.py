"""Rendezvous: rank 0 opens a store on a free port and publishes its addresses in the run directory.

MASTER_ADDR needs a node name that resolves on every other node and MASTER_PORT a port that happens to be free; if
either fails, a job hangs until its time limit. The run directory is shared anyway, so both are published there, and
each rank takes the first address that responds.
"""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from hpclm.core.files import write_json
from hpclm.worker.addresses import address_of, addresses, boot_id
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.report import RendezvousError

WAIT_S = 300.0
_CONNECT_S = 3.0
_LOOPBACK = "127.0.0.1"


def rendezvous(path: Path, facts: RankFacts, *, wait_s: float = WAIT_S) -> dist.TCPStore:
    """The store shared by all ranks, once every rank has connected.

    Also names the network interface for gloo, which otherwise takes whatever the host's name resolves to, and NCCL.
    """
    timeout = timedelta(seconds=wait_s)
    if facts.rank == 0:
        store = dist.TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timeout)
        write_json(path, {"port": store.port, "addresses": list(addresses()), "boot_id": boot_id()})
        address = _LOOPBACK
    else:
        address, port = _reach(path, time.monotonic() + wait_s)
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    if address != _LOOPBACK:
        store.set("reached", address)
    store.set(f"boot/{facts.rank}", boot_id())
    _wait_for_all(store, facts, wait_s)
    machines = {store.get(f"boot/{rank}") for rank in range(facts.world_size)}
    if len(machines) > 1 and address == _LOOPBACK:
        address = store.get("reached").decode()  # rank 0's own machine: as the others come to it
    interface = _interface(address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if len(machines) > 1:
        # of several interfaces NCCL takes the first, which may lead nowhere; = means this name alone
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    return store


def _reach(path: Path, deadline: float) -> tuple[str, int]:
    """The first address of rank 0 that accepts a connection, and its port."""
    tried = "rank 0 published no address"
    while time.monotonic() < deadline:
        # Listing the folder makes an NFS client ask the server again; a bare open may use a cached "does not exist".
        if path in path.parent.iterdir():
            record = json.loads(path.read_text())
            candidates = [_LOOPBACK] if record["boot_id"] == boot_id() else record["addresses"]
            for address in candidates:
                try:
                    socket.create_connection((address, record["port"]), timeout=_CONNECT_S).close()
                    return str(address), int(record["port"])
                except OSError as error:
                    tried = f"{address}:{record['port']}: {error}"
        time.sleep(0.05)
    raise RendezvousError(f"rank 0 could not be reached ({tried}); see {path}")


def _wait_for_all(store: dist.TCPStore, facts: RankFacts, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    for rank in range(facts.world_size):
        left = max(0.01, deadline - time.monotonic())
        try:
            store.wait([f"boot/{rank}"], timedelta(seconds=left))
        except dist.DistError as error:
            raise RendezvousError(f"rank {rank} of {facts.world_size} did not arrive within {wait_s:.0f} s") from error


def _interface(address: str) -> str:
    """The network interface used for traffic to `address`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = probe.getsockname()[0]
    for _, name in socket.if_nameindex():
        if address_of(name) == own:
            return name
    return "lo"
