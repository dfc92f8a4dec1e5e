"""Ranks on machines with networks of their own: each names the interface that leads to the others."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.processes import run, start

RANK = """
import os, sys
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.ranks import rendezvous
rank, machine, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
rendezvous.boot_id = lambda: machine
store = rendezvous.rendezvous(path, RankFacts(rank, 3, 0, 0, machine, 0), wait_s=300)
dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=timedelta(seconds=300))
total = torch.tensor([float(rank)])
dist.all_reduce(total)
print(os.environ["GLOO_SOCKET_IFNAME"], os.environ.get("NCCL_SOCKET_IFNAME"), total.item())
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, besides their loopbacks."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2")
    mark = secrets.token_hex(3)
    one, two = f"hpclm-{mark}-1", f"hpclm-{mark}-2"
    try:
        ip("netns", "add", one)
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces are not allowed here")
    try:
        ip("netns", "add", two)
        ip("link", "add", "left", "netns", one, "type", "veth", "peer", "name", "right", "netns", two)
        for machine, device, address in ((one, "left", "10.213.0.1/24"), (two, "right", "10.213.0.2/24")):
            ip("-n", machine, "addr", "add", address, "dev", device)
            ip("-n", machine, "link", "set", device, "up")
            ip("-n", machine, "link", "set", "lo", "up")
        yield one, two
    finally:
        for machine in (one, two):
            run(["ip", "netns", "del", machine])


@pytest.mark.slow
def test_each_machine_names_the_interface_to_the_others(machines: tuple[str, str], tmp_path: Path) -> None:
    one, two = machines
    python = [sys.executable, "-W", "ignore", "-c", RANK]
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                start(
                    ["ip", "netns", "exec", machine, *python, str(rank), machine, str(tmp_path / "rendezvous.json")],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for rank, machine in enumerate((one, one, two))
        ]
        said = [rank.communicate()[0].strip() for rank in ranks]
    assert said == ["left =left 3.0", "left =left 3.0", "right =right 3.0"]
