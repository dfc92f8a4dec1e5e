"""How a rank starts on a GPU, as far as a machine without one can show it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from hpclm.core import heartbeat
from hpclm.core.files import write_json
from hpclm.core.layout import AttemptPaths
from hpclm.core.rank_report import RankReport
from hpclm.core.states import RankState
from hpclm.data.ranks.transfer import moved, placed, stage
from hpclm.recovery.rank_failures import first_failure
from hpclm.worker import gpu_environment
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.ranks import devices
from hpclm.worker.report import classify
from hpclm.worker.stall_watch import StallWatch


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The UUIDs of the GPUs that torch sees; a test changes the list."""
    seen = ["GPU-a", "GPU-b"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=seen[index]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return seen


def facts(rank: int) -> RankFacts:
    return RankFacts(rank, 2, rank, 0, "node3", 0)


def test_ranks_take_one_gpu_each(gpus: list[str]) -> None:
    store = dist.HashStore()
    assert [str(devices.take_gpu(store, facts(rank))) for rank in (0, 1)] == ["cuda:0", "cuda:1"]


def test_ranks_that_the_scheduler_gives_one_gpu_each_take_it(gpus: list[str]) -> None:
    store = dist.HashStore()
    for rank, uuid in enumerate(("GPU-a", "GPU-b")):
        gpus[:] = [uuid]
        assert str(devices.take_gpu(store, facts(rank))) == "cuda:0"


def test_two_ranks_on_one_gpu_are_named(gpus: list[str]) -> None:
    store = dist.HashStore()
    gpus[:] = ["GPU-a"]
    devices.take_gpu(store, facts(0))
    with pytest.raises(RuntimeError, match=r"ranks 0 and 1 on node node3 have the same GPU \(GPU-a\).*--gpu-bind"):
        devices.take_gpu(store, facts(1))


@pytest.mark.parametrize(
    ("there", "rank", "words"),
    [
        ([], 0, "no CUDA-capable device for rank 0: torch sees 0 of node node3"),
        (["GPU-a", "GPU-b"], 2, r"rank 2 is number 3 on its node, and torch sees 2 of node node3"),
    ],
)
def test_a_rank_without_a_gpu_says_what_there_is(gpus: list[str], there: list[str], rank: int, words: str) -> None:
    gpus[:] = there
    with pytest.raises(RuntimeError, match=words) as caught:
        devices.take_gpu(dist.HashStore(), facts(rank))
    assert classify(caught.value) == ("error" if there else "hardware")


@pytest.mark.parametrize(
    "text",
    ["CUDA error: system not yet initialized", "system has unsupported display driver / cuda driver combination"],
)
def test_a_node_whose_fabric_or_driver_is_not_ready_is_a_nodes_fault(text: str) -> None:
    assert classify(RuntimeError(text)) == "hardware"


@pytest.mark.parametrize(
    ("capability", "queues"), [([9, 0], "1"), ([10, 0], None), (None, "1")]
)  # Hopper, Blackwell, no preflight check
def test_one_hardware_queue_up_to_hopper(tmp_path: Path, capability: list[int] | None, queues: str | None) -> None:
    paths = AttemptPaths(tmp_path)
    if capability:
        write_json(paths.preflight_report("n"), {"facts": {"gpu": {"gpus": [{"capability": capability}, {}]}}})
    found = gpu_environment.gpu_environment(paths, "n", divided=True)
    assert found.get("CUDA_DEVICE_MAX_CONNECTIONS") == queues
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in gpu_environment.gpu_environment(paths, "n", divided=False)


def test_what_the_user_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "PYTORCH_ALLOC_CONF": "x:y"})
    gpu_environment.set_gpu_environment(AttemptPaths(tmp_path), "n", divided=False)
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
    assert os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == str(tmp_path / "flight-recorder" / "rank_")


def test_nothing_is_compiled_on_a_node_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not gpu_environment.can_compile()
    found = gpu_environment.gpu_environment(AttemptPaths(tmp_path), "n", divided=False)
    assert found["TORCHDYNAMO_DISABLE"] == "1"


def test_a_batch_goes_in_one_piece_and_arrives_as_it_was() -> None:
    tensors = {
        "tokens": torch.arange(7).view(1, 7),
        "mask": torch.tensor([[True, False, True]]),
        "loss": torch.rand(3, 2),
        "layout": torch.arange(6).view(2, 3).expand(4, -1, -1),
        "none": torch.zeros((0, 3)),
        "one": torch.tensor(2.5, dtype=torch.bfloat16),
    }
    staged, places = stage(tensors, pin=False)
    assert all(start % 16 == 0 for start in places.values())
    for name, tensor in tensors.items():
        found = placed(staged, tensor, places[name])
        assert torch.equal(found, tensor[0] if name == "layout" else tensor)
    away = moved(tensors, torch.device("meta"))
    assert {name: (one.shape, one.dtype) for name, one in away.items()} == {
        name: (one.shape, one.dtype) for name, one in tensors.items()
    }
    assert away["layout"].stride(0) == 0


def waited(rank: int, beats: int) -> RankReport:
    report = RankReport(rank, f"node{rank}", 1, 1.0)
    report.state, report.kind, report.beats, report.ended_at = RankState.FAILED, "waited", beats, 2.0
    report.message = "waited for others for 60 s at training.py:1"
    return report


def test_under_nccl_all_ranks_wait_and_the_one_behind_is_named() -> None:
    found = first_failure([waited(0, 12), waited(1, 11), waited(2, 12)])
    assert found is not None
    assert (found.rank, found.kind) == (1, "stall")
    nobody = first_failure([waited(0, 12), waited(1, 12)])
    assert nobody is not None
    assert nobody.rank is None
    assert "none was behind the others: no node can be blamed" in nobody.reason


def test_a_rank_that_waits_for_its_device_counts_as_waiting(tmp_path: Path) -> None:
    watch = StallWatch(SimpleNamespace(), AttemptPaths(tmp_path), 0, 60.0)  # type: ignore[arg-type]
    watch.main = None
    assert not watch._is_waiting()
    with heartbeat.waiting():
        assert watch._is_waiting()
    assert not watch._is_waiting()
