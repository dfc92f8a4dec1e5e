"""Our loop trains as Hugging Face's Trainer does: the same losses and weights, on the same rows in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.layout import StagePaths
from hpclm.data.instructions.instruction_files import records
from hpclm.data.ranks.instruction_tokens import InstructionEncoder
from hpclm.data.ranks.sampler import GlobalBatchSampler
from hpclm.engines.hf.ranks.hf_loading import load_tokenizer
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import losses, run
from tests.support.hf_models import loaded_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS = 20


def in_our_order(spec: FineTuneStageSpec) -> list[dict[str, list[int]]]:
    """The rows as Trainer takes them, one after the other, in the order that our stage reads them."""
    encoder = InstructionEncoder(load_tokenizer(Path(spec.base)), spec.data)
    rows = list(encoder.rows(records(spec.data.train, spec.data, learns=True)))
    sampler = GlobalBatchSampler(
        len(rows), global_batch_size=8, micro_batch_size=2, data_rank=0, data_size=1, seed=spec.trainer.seed
    )
    lengths = [len(row.tokens) for row in rows]
    order = [row for step in range(STEPS) for row in sorted(sampler.global_batch(step), key=lengths.__getitem__)]
    return [
        {
            "input_ids": rows[row].tokens,
            "labels": [
                token if learned else -100 for token, learned in zip(rows[row].tokens, rows[row].learned, strict=True)
            ],
        }
        for row in order
    ]


def trained_by_trainer(
    folder: Path, spec: FineTuneStageSpec, model: Any, pad: int
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of Trainer with the settings of the spec."""
    from transformers import Trainer, TrainingArguments

    rows = in_our_order(spec)

    def collate(some: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in some)
        fill = {"input_ids": pad, "labels": -100, "attention_mask": 0}
        made = {name: [] for name in fill}  # type: ignore[var-annotated]
        for row in some:
            whole = {**row, "attention_mask": [1] * len(row["input_ids"])}
            for name, value in whole.items():
                made[name].append(value + [fill[name]] * (width - len(value)))
        return {name: torch.tensor(value) for name, value in made.items()}

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=STEPS,
        learning_rate=spec.optim.lr,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        weight_decay=spec.optim.weight_decay,
        adam_beta1=spec.optim.beta1,
        adam_beta2=spec.optim.beta2,
        adam_epsilon=spec.optim.epsilon,
        max_grad_norm=1.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        optim="adamw_torch",
        disable_tqdm=True,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    found = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return found, {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}


def ours(paths: StagePaths, names: set[str]) -> dict[str, Tensor]:
    stored = WholeTensors(paths.checkpoint(STEPS))
    return {name: stored.tensor(name) for name in stored.stored if not name.startswith("optimizer.") and name in names}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_losses_and_weights_are_trainers(shop: Workshop, tmp_path: Path, method: str) -> None:
    """Accumulation over micro-batches with different numbers of labels, clipping, warm-up and decay included."""
    spec = shop.spec(method=method, steps=STEPS, lr=3e-3, weight_decay=0.1, validate=100)
    paths = run(spec)
    torch.manual_seed(0)
    model: Any = loaded_model(Path(spec.base))
    if method == "lora":
        from hpclm.core.ranks.seeds import named_seed
        from hpclm.engines.hf.ranks import adapters

        seed = named_seed(spec.trainer.seed, "adapter") % (1 << 31)
        adapters.attach(model, spec.method, spec.base, None, seed)
    wanted, weights = trained_by_trainer(tmp_path, spec, model, 3)
    found = losses(paths)
    # Trainer writes four digits of a loss less than ten
    assert found == pytest.approx(wanted, abs=6e-5 if max(wanted) < 10 else 6e-4)
    assert found[-1] < found[0]
    mine = ours(paths, set(weights))
    assert set(mine) == set(weights)
    for name, value in weights.items():
        assert (mine[name] - value).abs().max() < 1e-6, name
