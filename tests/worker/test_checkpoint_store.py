"""A checkpoint is whole or refused, and any piece of it can be read by itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from hpclm.core import heartbeat
from hpclm.core.errors import CheckpointError, DataError, PeerError
from hpclm.core.files import read_object, write_json
from hpclm.core.spec import CheckpointSpec
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.formats.checkpoint_manifest import damage
from hpclm.formats.checkpoint_pointers import checkpoints_in, step_of
from hpclm.formats.ranks import checkpoint_store
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager, resolve
from hpclm.formats.ranks.tensor_file import write_tensors
from hpclm.formats.ranks.tensor_shard import TensorShard, divided, is_main_replica

pytestmark = pytest.mark.filterwarnings("ignore")

WHOLE = torch.arange(24, dtype=torch.float32).reshape(6, 4)


def shard(
    data: torch.Tensor, rows: tuple[int, int] = (0, 1), columns: tuple[int, int] = (0, 1), key: str = "w"
) -> ShardedTensor:
    """`data` as part number k of n along each axis."""
    return ShardedTensor.from_rank_offsets(key, data, (0, *rows), (1, *columns))


@pytest.fixture
def saved(tmp_path: Path, alone: Groups) -> Path:
    folder = tmp_path / "step-00000001"
    # two pieces in one file, as two ranks would hold them
    checkpoint_store.save(folder, [shard(WHOLE[:3].clone(), (0, 2)), shard(WHOLE[3:].clone(), (1, 2))], {"step": 1})
    return folder


@pytest.mark.parametrize("parts", [(1, 1), (2, 1), (3, 1), (1, 2), (6, 4), (2, 4)])
def test_any_cut_reads_what_another_wrote(saved: Path, parts: tuple[int, int]) -> None:
    height, width = 6 // parts[0], 4 // parts[1]
    for row in range(parts[0]):
        for column in range(parts[1]):
            data = torch.full((height, width), -1.0)
            checkpoint_store.load(saved, [shard(data, (row, parts[0]), (column, parts[1]))])
            assert torch.equal(data, WHOLE[row * height :, column * width :][:height, :width])


def test_values_take_the_type_of_where_they_go(saved: Path) -> None:
    data = torch.zeros(6, 4, dtype=torch.bfloat16)
    checkpoint_store.load(saved, [shard(data)])
    assert torch.equal(data, WHOLE.bfloat16())


def test_a_table_of_another_padding_takes_what_both_have(saved: Path) -> None:
    longer = torch.full((8, 4), 9.0)
    piece = shard(longer)
    piece.allow_shape_mismatch = True
    checkpoint_store.load(saved, [piece])
    assert torch.equal(longer[:6], WHOLE)
    assert not longer[6:].any()


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (shard(torch.zeros(6, 4), key="other"), "contains no tensor other"),
        (shard(torch.zeros(6, 5)), r"w has shape \(6, 4\), the model of the recipe needs \(6, 5\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(saved: Path, piece: ShardedTensor, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        checkpoint_store.load(saved, [piece])


def _shard_file(folder: Path) -> Path:
    return folder / "shard-00000.safetensors"


def _truncate(folder: Path) -> None:
    _shard_file(folder).write_bytes(_shard_file(folder).read_bytes()[:-5])


def _flip(folder: Path) -> None:
    content = bytearray(_shard_file(folder).read_bytes())
    content[-3] ^= 4
    _shard_file(folder).write_bytes(content)


def _escape(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_truncate, "bytes, expected"),
        (_flip, "sha256 differs"),
        (lambda folder: _shard_file(folder).unlink(), "missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": "hpclm'), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not an hpclm checkpoint"),
        (lambda folder: (folder / "manifest.json").unlink(), "never finished"),
        (_escape, "points outside the checkpoint"),
    ],
)
def test_damage_is_found_and_named(saved: Path, harm: Callable[[Path], object], words: str) -> None:
    assert damage(saved) is None
    harm(saved)
    wrong = damage(saved)
    assert wrong is not None
    assert words in wrong


def test_the_best_and_the_last_are_kept(tmp_path: Path, alone: Groups) -> None:
    manager = CheckpointManager(tmp_path, CheckpointSpec(keep_last=2, keep_best=1), lambda folder: None)
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4), (4, None), (5, 0.3)):
        manager.save(step, [shard(WHOLE)], {}, loss)
    assert sorted(map(step_of, checkpoints_in(tmp_path))) == [2, 4, 5]
    assert resolve(tmp_path, prefer="best").name == "step-00000002"
    assert resolve(tmp_path, prefer="latest").name == "step-00000005"
    assert resolve(tmp_path / "step-00000004", prefer="best").name == "step-00000004"
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        resolve(tmp_path / "elsewhere", prefer="best")


def test_a_restart_goes_on_from_the_newest_undamaged(tmp_path: Path, alone: Groups) -> None:
    manager = CheckpointManager(tmp_path, CheckpointSpec(keep_last=3), lambda folder: None)
    for step in (1, 2, 3):
        manager.save(step, [shard(WHOLE)], {"loss": step / 10}, 1.0 / step)
    _flip(tmp_path / "step-00000003")
    fresh = CheckpointManager(tmp_path, CheckpointSpec(), lambda folder: None)
    found = fresh.resume()
    assert found is not None
    assert (found.state["step"], found.state["loss"]) == (2, 0.2)
    assert CheckpointManager(tmp_path / "none", CheckpointSpec(), lambda folder: None).resume() is None


def test_a_tokenizer_that_has_changed_is_not_used(tmp_path: Path, alone: Groups) -> None:
    """It is not a shard, but other ids would make other answers without a word."""
    folder = tmp_path / "step-00000001"
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 20, 270)
    checkpoint_store.save(folder, [shard(WHOLE.clone())], {"step": 1}, tokenizer.save)
    assert damage(folder) is None
    assert Tokenizer.load(folder).vocab_size == tokenizer.vocab_size
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"unk_token": null', '"unk_token": "a"'))
    wrong = damage(folder)
    assert wrong is not None
    assert "tokenizer.json" in wrong
    with pytest.raises(DataError, match=r"tokenizer.json: its contents have changed"):
        Tokenizer.load(folder)


def asynchronous(folder: Path) -> CheckpointManager:
    return CheckpointManager(folder, CheckpointSpec(keep_last=1, asynchronous=True), lambda made: None)


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, alone: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored are the values at the step that it is named after."""
    manager, values = asynchronous(tmp_path), WHOLE.clone()
    written = threading.Event()

    def slowly(path: Path, data: dict[str, torch.Tensor]) -> str:
        assert written.wait(30)
        return write_tensors(path, data)

    monkeypatch.setattr(checkpoint_store, "write_tensors", slowly)
    manager.save(1, [shard(values)], {"loss": 0.1}, 1.0)
    values.zero_()
    assert not (tmp_path / "latest.json").exists(), "it is not complete yet"
    manager.check()
    written.set()
    manager.save(2, [shard(values)], {"loss": 0.2}, None)
    manager.settle()
    assert [step_of(one) for one in checkpoints_in(tmp_path)] == [1, 2], "the best and the newest"
    found = shard(torch.ones_like(WHOLE))
    checkpoint_store.load(tmp_path / "step-00000001", [found])
    assert torch.equal(found.data, WHOLE)
    assert all(damage(one) is None for one in checkpoints_in(tmp_path))


def test_a_checkpoint_that_could_not_be_written_ends_the_training(
    tmp_path: Path, alone: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, data: dict[str, torch.Tensor]) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint_store, "write_tensors", broken)
    manager = asynchronous(tmp_path)
    manager.save(1, [shard(WHOLE)], {}, None)
    assert manager.saving is not None
    manager.saving.thread.join()
    with pytest.raises(OSError, match="Input/output error"):
        manager.check()
    assert not checkpoints_in(tmp_path)


def test_a_thread_that_writes_is_no_sign_of_life(alone: Groups, tmp_path: Path) -> None:
    """A training that is stuck beside it must be seen."""
    before = heartbeat.count()
    manager = asynchronous(tmp_path)
    manager.save(1, [shard(WHOLE)], {}, None)
    assert manager.saving is not None
    manager.saving.thread.join()
    assert heartbeat.count() == before


def test_each_rank_writes_about_as_much() -> None:
    pieces = [
        TensorShard(f"w{n}", torch.zeros(rows, 8), (rows, 8), (0, 0), (0, 0, 3))
        for n, rows in enumerate((64, 8, 32, 24))
    ]
    owned = [[one.key for one in divided(pieces, rank, 2) if is_main_replica(one)] for rank in (0, 1)]
    assert owned == [["w0"], ["w1", "w2", "w3"]]
    copy = TensorShard("tied", torch.zeros(2), (2,), (0,), (1, 0, 0))
    assert not any(is_main_replica(one) for one in divided([copy], 0, 1)), "another stage writes it"


def test_files_beside_the_tensors_are_of_the_same_step(tmp_path: Path, alone: Groups) -> None:
    """An adapter's are made from what training changes."""
    now = {"step": 1}
    policy = CheckpointSpec(keep_last=2, asynchronous=True)
    manager = CheckpointManager(tmp_path, policy, lambda made: write_json(made / "beside.json", dict(now)))
    for step in (1, 2, 3):
        now["step"] = step
        manager.save(step, [shard(WHOLE)], {"loss": 0.1}, None)
        now["step"] = 100
    manager.settle()
    assert [read_object(one / "beside.json") for one in checkpoints_in(tmp_path)] == [{"step": 2}, {"step": 3}]


def test_the_failure_of_another_rank_is_its_own(alone: Groups) -> None:
    """A full disk there says nothing against the checkpoint, and the run is to be tried again."""
    notes = checkpoint_store._Notes(10**6)
    notes.tell(3, None, failed=True)
    with pytest.raises(PeerError, match="rank 3 could not write its part"):
        notes.hear(3)


def test_a_training_that_fails_lets_its_checkpoint_be_completed(
    tmp_path: Path, alone: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(path: Path, data: dict[str, torch.Tensor]) -> str:
        time.sleep(0.3)
        return write_tensors(path, data)

    monkeypatch.setattr(checkpoint_store, "write_tensors", slowly)
    manager = asynchronous(tmp_path)
    manager.save(7, [shard(WHOLE)], {"loss": 0.1}, None)
    manager.rescue()
    assert [step_of(one) for one in checkpoints_in(tmp_path)] == [7]


def test_what_a_kill_left_of_a_checkpoint_is_removed(tmp_path: Path, alone: Groups) -> None:
    left = tmp_path / "step-00000009.partial"
    left.mkdir()
    (left / "shard-00000.safetensors").write_bytes(bytes(100))
    assert asynchronous(tmp_path).resume() is None
    assert not left.exists()
