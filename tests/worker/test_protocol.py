"""What a rank tells the login node, the rendezvous of ranks, and what the worker must not import."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.errors import CheckpointError, DataError, PeerError
from hpclm.core.exit_codes import ExitCode
from hpclm.worker.addresses import boot_id
from hpclm.worker.rank_identity import RankFacts, rank_facts
from hpclm.worker.ranks.rendezvous import rendezvous
from hpclm.worker.report import ProgramError, Progress, RankRecord, RendezvousError, StoppedError
from hpclm.worker.signals import StopFlag
from tests.support.processes import python, start
from tests.support.waiting import wait_until

OURS = {"HPCLM_RANK": "3", "HPCLM_WORLD_SIZE": "4", "HPCLM_LOCAL_RANK": "1", "HPCLM_NODE_RANK": "1"}
NAMES = "SLURM_PROCID SLURM_NTASKS SLURM_LOCALID SLURM_NODEID SLURMD_NODENAME"
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURMD_NODENAME": "n2"}


def test_the_place_of_a_rank_comes_from_our_executor_or_from_srun() -> None:
    facts = rank_facts({**SLURM, "HPCLM_RANK_VARIABLES": NAMES, "HPCLM_RESTART": "2"})
    assert facts == RankFacts(5, 8, 1, 2, "n2", 2)
    ours = rank_facts({**SLURM, "HPCLM_RANK_VARIABLES": NAMES, **OURS})
    assert (ours.rank, ours.world_size, ours.local_rank, ours.node_rank, ours.restart) == (3, 4, 1, 1, 0)
    with pytest.raises(RuntimeError, match=r"not started by hpclm: SLURM_PROCID, SLURM_NTASKS, .* are not all set"):
        rank_facts({"SLURM_PROCID": "1", "HPCLM_RANK_VARIABLES": NAMES})


def test_a_schedulers_variables_count_only_where_they_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"not started by hpclm: HPCLM_RANK, .* are not all set"):
        rank_facts(SLURM)


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError."""


@pytest.mark.parametrize(
    ("error", "kind", "code", "state"),
    [
        (None, "ok", 0, "done"),
        (StoppedError("saved"), "signal", 30, "stopped"),
        (DataError("rows.jsonl:3: not valid JSON"), "data", ExitCode.DATA, "failed"),
        (CheckpointError("damaged"), "checkpoint", ExitCode.CHECKPOINT, "failed"),
        (FloatingPointError("diverged"), "data", ExitCode.DATA, "failed"),
        (MemoryError(), "memory", ExitCode.MEMORY, "failed"),
        (OutOfMemoryError("CUDA out of memory"), "memory", ExitCode.MEMORY, "failed"),
        (PeerError("rank 0 failed"), "peer-lost", 20, "failed"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "peer-lost", 20, "failed"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "error", 1, "failed"),
        (RendezvousError("rank 2 did not arrive"), "rendezvous-timeout", 20, "failed"),
        (OSError(errno.ESTALE, "Stale file handle"), "storage", 1, "failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk", 49, "failed"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "hardware", 50, "failed"),
        (RuntimeError("CUDA error: device-side assert triggered"), "error", 1, "failed"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory", ExitCode.MEMORY, "failed"),
        (ProgramError("ended with exit code 3", retry=False), "error", 1, "failed"),
        (ProgramError("ended with SIGKILL", retry=True), "program", 1, "failed"),
        (KeyError("x"), "error", 1, "failed"),
    ],
)
def test_how_a_rank_ended(tmp_path: Path, error: Exception | None, kind: str, code: int, state: str) -> None:
    path = tmp_path / "ranks" / "00003.json"
    record = RankRecord(path, RankFacts(3, 4, 1, 1, "n1", 0))
    assert json.loads(path.read_text())["state"] == "running"
    assert record.finish(error) == code
    written = json.loads(path.read_text())
    assert (written["kind"], written["exit_code"], written["state"], written["node"]) == (kind, code, state, "n1")
    assert written["ended_at"] >= written["started_at"]
    if error is not None:
        assert written["error_type"] == type(error).__name__
        assert written["message"]


def test_progress_is_json_whatever_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(tmp_path / "progress.json", tmp_path / "metrics.jsonl", active=True)
    progress.update(phase="training", step=1, loss=float("nan"))
    progress.update(step=2)  # within the second: not written
    progress.metric("train", 1, {"loss": float("inf")})
    progress.metric("train", 2, {"loss": 0.5})
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 1
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [None, 0.5]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # the writer was killed here
    progress.forget_after(1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert "train step 2 loss 0.5" in capsys.readouterr().out


def test_ranks_that_do_not_report_write_nothing(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.json", tmp_path / "metrics.jsonl", active=False)
    progress.update(phase="done", force=True)
    progress.metric("train", 1, {"loss": 0.5})
    assert not list(tmp_path.iterdir())


def test_a_signal_sets_a_flag_and_nothing_else() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    try:
        flag = StopFlag()
        flag.install()
        assert not flag.requested
        os.kill(os.getpid(), signal.SIGUSR2)
        wait_until("the flag", lambda: flag.requested)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGUSR2), before, strict=True):
            signal.signal(number, handler)


RENDEZVOUS = """
import sys
from pathlib import Path
from typing import Any
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.ranks.rendezvous import rendezvous
rank, world = int(sys.argv[2]), int(sys.argv[3])
store = rendezvous(Path(sys.argv[1]), RankFacts(rank, world, rank, 0, "n", 0), wait_s=300)
store.set(f"hello/{rank}", str(rank))
print(sorted(store.get(f"hello/{other}").decode() for other in range(world)))
store.set(f"done/{rank}", "")
store.wait([f"done/{other}" for other in range(world)])
"""


def test_the_rendezvous_is_through_a_file(tmp_path: Path) -> None:
    argv = [sys.executable, "-W", "ignore", "-c", RENDEZVOUS, str(tmp_path / "rendezvous.json")]
    # the late one is rank 0: the others wait for its address
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(start([*argv, str(rank), "3"], stdout=subprocess.PIPE, text=True)) for rank in (2, 1, 0)
        ]
        assert {rank.communicate()[0].strip() for rank in ranks} == {"['0', '1', '2']"}


@pytest.mark.filterwarnings("ignore")
def test_many_ranks_meet_and_all_hear_who_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")  # which it would set

    stores = list[Any]()

    def meet(rank: int, folder: str, missing: int, wait_s: float) -> str:
        facts = RankFacts(rank, 64 + missing, rank, 0, "n", 0)
        try:
            stores.append(rendezvous(tmp_path / folder / "rendezvous.json", facts, wait_s=wait_s))
            return str(stores[-1].get("boot/63"))
        except RendezvousError as error:
            return str(error)

    for folder in ("all", "some"):
        (tmp_path / folder).mkdir()
    with ThreadPoolExecutor(64) as pool:
        found = set(pool.map(lambda rank: meet(rank, "all", 0, 300), range(64)))
        said = set(pool.map(lambda rank: meet(rank, "some", 1, 10), range(64)))
    assert found == {str(boot_id().encode())}
    assert said == {"rank 64 of 65 did not arrive within 10 s"}


@pytest.mark.filterwarnings("ignore")
def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match=r"rank 1 of 2 did not arrive within 0 s"):
        rendezvous(tmp_path / "rendezvous.json", RankFacts(0, 2, 0, 0, "n", 0), wait_s=0.3)
    with pytest.raises(RendezvousError, match="rank 0 could not be reached"):
        rendezvous(tmp_path / "elsewhere.json", RankFacts(1, 2, 1, 0, "n", 0), wait_s=0.3)


IMPORTS = """
import importlib, pkgutil, sys
sys.modules["wandb"] = None  # where it is installed, megatron-core loads it, and it pydantic
from hpclm.engines.megatron.ranks import cpu_standins
cpu_standins.install()
for package in ("worker", "adapters.ranks", "data.ranks", "engines.megatron.ranks", "formats.ranks"):
    path = importlib.import_module(f"hpclm.{package}").__path__
    for module in pkgutil.walk_packages(path, f"hpclm.{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
# yaml is not named: torch brings and loads its own
print([name for name in ("pydantic", "typer", "rich", "submitit") if name in sys.modules])
"""


def test_the_worker_starts_in_an_image_without_our_login_side() -> None:
    done = python("-W", "ignore", "-c", IMPORTS)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
