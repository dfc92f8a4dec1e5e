"""Every path of a checkpoint. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckpointFolder:
    """A stage's checkpoints, or one checkpoint, which has the cards and the tokenizer as well."""

    root: Path

    @property
    def best(self) -> Path:
        """The step with the lowest val_loss."""
        return self.root / "best.json"

    @property
    def latest(self) -> Path:
        """The newest step."""
        return self.root / "latest.json"

    def step(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    @property
    def manifest(self) -> Path:
        """Of one checkpoint: tensors, files and checksums; written last of all."""
        return self.root / "manifest.json"

    @property
    def model(self) -> Path:
        """The architecture."""
        return self.root / "model.json"

    @property
    def prompts(self) -> Path:
        """Which tasks the prompts belong to, and how they were trained."""
        return self.root / "prompts.json"

    @property
    def fine_tuned(self) -> Path:
        """Of engine hf: how the model was tuned, and which one."""
        return self.root / "fine_tuned.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer.json"

    @property
    def sentencepiece(self) -> Path:
        """The tokenizer where it is a SentencePiece model."""
        return self.root / "tokenizer.model"
