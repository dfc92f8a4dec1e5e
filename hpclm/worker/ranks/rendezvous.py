"""Rendezvous: rank 0 opens a store on a free port and publishes its addresses in the run directory.

MASTER_ADDR needs a node name that resolves on every other node and MASTER_PORT a port that happens to be free; if
either fails, a job hangs until its time limit. The run directory is shared anyway, so both are published there, and
each rank takes the first address that responds.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from hpclm.core.files import write_json
from hpclm.core.layout import AttemptPaths
from hpclm.worker.addresses import address_of, addresses, boot_id
from hpclm.worker.peers import pauses, refuse_failed
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.report import RendezvousError

WAIT_S = 300.0
_CONNECT_S = 3.0
_LOOPBACK = "127.0.0.1"
_MOST_PAUSE_S, _ASK_S = 1.0, 5.0
# Files that rank 0 opens besides a connection for each rank.
_OTHER_FILES = 512


def rendezvous(path: Path, facts: RankFacts, *, wait_s: float = WAIT_S) -> dist.TCPStore:
    """The store shared by all ranks, once every rank has connected.

    Also names the network interface for gloo, which otherwise takes whatever the host's name resolves to, and NCCL.
    """
    timeout = timedelta(seconds=wait_s)
    if facts.rank == 0:
        _allow_connections(facts.world_size)
        store = dist.TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timeout)
        write_json(path, {"port": store.port, "addresses": list(addresses()), "boot_id": boot_id()})
        address = _LOOPBACK
    else:
        address, port = _reach(path, time.monotonic() + wait_s)
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    if address != _LOOPBACK:
        store.set("reached", address)
    store.set(f"boot/{facts.rank}", boot_id())
    machines = _count_machines(store, facts, wait_s) if facts.rank == 0 else _hear(store, facts, wait_s)
    if machines > 1 and address == _LOOPBACK:
        address = store.get("reached").decode()  # rank 0's own machine: as the others come to it
    interface = _interface(address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if machines > 1:
        # of several interfaces NCCL takes the first, which may lead nowhere; = means this name alone
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    return store


def _reach(path: Path, deadline: float) -> tuple[str, int]:
    """The first address of rank 0 that accepts a connection, and its port."""
    tried, pause = "rank 0 published no address", pauses(0.05, _MOST_PAUSE_S)
    attempt, asked = AttemptPaths(path.parent), time.monotonic()
    while time.monotonic() < deadline:
        if time.monotonic() - asked > _ASK_S:  # it may have failed before it could publish any
            refuse_failed(attempt, [0])
            asked = time.monotonic()
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
        time.sleep(next(pause))
    raise RendezvousError(f"rank 0 could not be reached ({tried}); see {path}")


def _allow_connections(ranks: int) -> None:
    """Each rank has a connection to rank 0's store, and each connection is an open file."""
    wanted = ranks + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = hard if hard != resource.RLIM_INFINITY and hard < wanted else wanted
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < ranks:
            raise RendezvousError(
                f"{ranks} ranks connect to rank 0, which may open {hard} files; have the limit raised (ulimit -Hn)"
            )


def _count_machines(store: dist.TCPStore, facts: RankFacts, wait_s: float) -> int:
    """Rank 0 waits for every other, and tells them: so the requests grow with the ranks, not with their square."""
    deadline = time.monotonic() + wait_s
    machines = set()
    for rank in range(facts.world_size):
        left = max(0.01, deadline - time.monotonic())
        try:
            store.wait([f"boot/{rank}"], timedelta(seconds=left))
        except dist.DistError as error:
            store.set("met", json.dumps({"missing": rank}))
            time.sleep(_MOST_PAUSE_S)  # the store ends with this rank
            raise _missing(rank, facts, wait_s) from error
        machines.add(store.get(f"boot/{rank}"))
    store.set("met", json.dumps({"machines": len(machines)}))
    return len(machines)


def _hear(store: dist.TCPStore, facts: RankFacts, wait_s: float) -> int:
    """How many machines there are, once rank 0 has seen every rank."""
    try:
        store.wait(["met"], timedelta(seconds=wait_s + _CONNECT_S))
        met = json.loads(store.get("met"))
    except dist.DistError as error:
        raise RendezvousError(f"rank 0 is gone, or did not see every rank within {wait_s:.0f} s") from error
    if "missing" in met:
        raise _missing(met["missing"], facts, wait_s)
    return int(met["machines"])


def _missing(rank: int, facts: RankFacts, wait_s: float) -> RendezvousError:
    return RendezvousError(f"rank {rank} of {facts.world_size} did not arrive within {wait_s:.0f} s")


def _interface(address: str) -> str:
    """The network interface used for traffic to `address`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = probe.getsockname()[0]
    for _, name in socket.if_nameindex():
        if address_of(name) == own:
            return name
    return "lo"
