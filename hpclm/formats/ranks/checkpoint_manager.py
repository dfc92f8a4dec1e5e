"""A stage's checkpoints: which to keep, which is best, which one a restart continues from.

checkpoints/
  step-00000040/    one checkpoint (see checkpoint_store), with model.json, and tokenizer.json where the stage has one
  latest.json       {"checkpoint", "step"}
  best.json         {"checkpoint", "step", "val_loss"}
  model.json        what the checkpoints contain (ModelSpec)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import write_json
from hpclm.core.logging import log
from hpclm.core.spec import CheckpointSpec
from hpclm.formats.checkpoint_manifest import damage, read_manifest
from hpclm.formats.checkpoint_pointers import Which, checkpoints_in, pointed, step_of
from hpclm.formats.ranks import checkpoint_store
from hpclm.formats.ranks.staging import Staging
from hpclm.formats.ranks.tensor_shard import Shard

_RESCUE_S = 30.0


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to continue from, and the state in its manifest."""

    path: Path
    state: dict[str, Any]


class CheckpointManager:
    """Saves, prunes and finds the checkpoints of one stage. Every method is collective unless noted otherwise."""

    def __init__(self, folder: Path, policy: CheckpointSpec, finish: Callable[[Path], None]) -> None:
        self.folder, self.policy, self.finish = folder, policy, finish
        self.paths = CheckpointFolder(folder)
        self.best: list[tuple[float, int]] = []
        self.staging = Staging() if policy.asynchronous else None
        self.saving: checkpoint_store.Saving | None = None

    def save(self, step: int, shards: Iterable[Shard], state: Mapping[str, object], val_loss: float | None) -> None:
        """Write the checkpoint of `step` and drop those the policy no longer keeps.

        An asynchronous one is complete after `settle`, or after the next save has begun.
        """
        self.settle()
        if val_loss is not None:
            self.best = sorted({*self.best, (val_loss, step)})[: self._kept(1)]
        best = list(self.best)
        state = {**state, "step": step, "val_loss": val_loss, "best": [list(item) for item in best]}
        self.saving = checkpoint_store.Saving(
            self.paths.step(step),
            shards,
            state,
            self.finish,
            staging=self.staging,
            done=lambda: self._point_to(step, best),
        )
        if self.staging is None:
            self.settle()

    def check(self) -> None:
        """Raise what has gone wrong with a checkpoint that is being written. Not collective."""
        if self.saving is not None:
            self.saving.check()

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, if one is."""
        if self.saving is not None:
            self.saving.wait()
            self.saving = None
            dist.barrier()

    def rescue(self) -> None:
        """Give a checkpoint that is being written a while to be completed, where the training fails. Not collective."""
        if self.saving is not None:
            self.saving.finish_within(_RESCUE_S)

    def _point_to(self, step: int, best: list[tuple[float, int]]) -> None:
        write_json(self.paths.latest, {"checkpoint": self.paths.step(step).name, "step": step})
        if best:
            loss, number = best[0]
            record = {"checkpoint": self.paths.step(number).name, "step": number, "val_loss": loss}
            write_json(self.paths.best, record)
        self._prune(step, best)

    def resume(self) -> ResumePoint | None:
        """The newest undamaged checkpoint, or None for a fresh start.

        Every byte is checked against the manifest, the files are divided among the ranks, and all ranks are told of any
        damage, so that they continue from the same checkpoint.
        """
        candidates: list[list[str]] = [[]]
        if dist.get_rank() == 0:  # one asks the shared file system
            for left in self.folder.glob("*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            candidates = [[str(path) for path in reversed(checkpoints_in(self.folder))]]
        dist.broadcast_object_list(candidates, src=0)
        for path in map(Path, candidates[0]):
            wrong = self._damage(path)
            if wrong is None:
                point = ResumePoint(path, read_manifest(path).state)
                best: list[tuple[float, int]] = point.state.get("best") or []
                self.best = [(loss, step) for loss, step in best if self.paths.step(step).is_dir()]
                return point
            if dist.get_rank() == 0:
                log(f"not resuming from {path.name}: {wrong}")
        return None

    def _damage(self, path: Path) -> str | None:
        found: list[str | None] = [None] * dist.get_world_size()
        own = damage(path, share=(dist.get_rank(), len(found)))
        if own is None and not isinstance(read_manifest(path).state.get("step"), int):
            own = f"{CheckpointFolder(path).manifest}: without the state of its training"
        dist.all_gather_object(found, own)
        return next((wrong for wrong in found if wrong is not None), None)

    def _kept(self, least: int) -> int | None:
        """How many of the best checkpoints are kept, None: all."""
        return None if self.policy.keep_best is None else max(least, self.policy.keep_best)

    def _prune(self, newest: int, best: list[tuple[float, int]]) -> None:
        keep = {newest, *(step for _, step in best[: self._kept(0)])}
        steps = sorted(step_of(path) for path in checkpoints_in(self.folder))
        keep.update(steps[-max(1, self.policy.keep_last) :])
        for step in steps:
            if step not in keep:
                shutil.rmtree(self.paths.step(step))


def resolve(path: Path, *, prefer: str) -> Path:
    """The checkpoint meant by `path`: itself, or the `best` or `latest` (as `prefer`) of a stage's folder.

    Not collective. Raises CheckpointError when there is none.
    """
    if CheckpointFolder(path).manifest.exists():
        return path
    wanted: tuple[Which, ...] = ("best", "latest") if prefer == "best" else ("latest",)
    for which in wanted:
        found = pointed(path, which)
        if found is not None:
            return found
    raise CheckpointError(f"{path}: contains no checkpoint; give a checkpoint directory or a stage that has finished")
