"""Real ranks for tests: specs written to a folder, `hpclm.worker` over gloo, what they left read back."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpclm.core import spec as plan
from hpclm.core.files import read_lines, write_json
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.layout import StagePaths
from hpclm.core.parallel_spec import ParallelSpec, RankOrder
from hpclm.core.records import to_dict
from tests.support.processes import environment
from tests.support.rank_server import ForkedRank, Kind
from tests.support.waiting import wait_until

NAMES = ["path", "name", "self", "node", "list", "dict", "file", "mode", "type", "args", "item", "data"]
VOCAB = 384

SMALL = plan.ModelSpec(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=128,
    num_attention_heads=4,
    num_query_groups=4,
    kv_channels=8,
    max_position_embeddings=32,
    vocab_size=VOCAB,
    padded_vocab_size=VOCAB,
    init_std=0.05,
)
# what LLaMA-like models have instead
MODERN = replace(
    SMALL,
    num_query_groups=2,
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    ffn_hidden_size=64,
    add_bias_linear=False,
    tie_embeddings=False,
)


# what Nemotron-3-8B has
NEMOTRON = replace(
    MODERN,
    num_query_groups=4,
    normalization="layernorm1p",
    activation="squared_relu",
    ffn_hidden_size=128,
    rotary_percent=0.5,
)


@dataclass(frozen=True)
class Split:
    """Tensor, pipeline and data parallel degrees."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence: bool = False
    context: int = 1
    virtual: int = 1
    stages: tuple[int | None, int | None] = (None, None)
    zero: bool = False
    overlap: bool = False
    expert: int = 1
    expert_tensor: int | None = None
    order: RankOrder = "tp-cp-ep-dp-pp"
    offload: bool = False

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data * self.context

    @property
    def parallel(self) -> ParallelSpec:
        first, last = self.stages
        return ParallelSpec(
            self.tensor,
            self.pipeline,
            self.data,
            self.ranks,
            1,
            self.ranks,
            self.sequence,
            context=self.context,
            virtual_pipeline=self.virtual,
            first_stage_layers=first,
            last_stage_layers=last,
            distributed_optimizer=self.zero,
            overlap=self.overlap,
            expert=self.expert,
            expert_tensor=self.expert_tensor,
            order=self.order,
        )

    def __str__(self) -> str:
        name = f"tp{self.tensor}-pp{self.pipeline}-dp{self.data}" + ("-sp" if self.sequence else "")
        name += (f"-cp{self.context}" if self.context > 1 else "") + (f"-vp{self.virtual}" if self.virtual > 1 else "")
        name += "" if self.stages == (None, None) else f"-stages{self.stages[0]},{self.stages[1]}"
        name += f"-ep{self.expert}" if self.expert > 1 else ""
        name += f"-etp{self.expert_tensor}" if self.expert_tensor else ""
        name += "-offload" if self.offload else ""
        name += "-stages-first" if self.order != Split.order else ""
        return name + ("-zero" if self.zero else "") + ("-overlap" if self.overlap else "")


ALONE = Split()
SPLITS = [ALONE, Split(2), Split(1, 2), Split(1, 1, 2), Split(2, 2), Split(2, 1, 2)]


def write_data(folder: Path) -> None:
    """A text of one easy pattern and rows of two tasks on it."""
    draw = random.Random(1)
    (folder / "text").mkdir(parents=True)
    lines = []
    for _ in range(3000):
        a, b = draw.sample(NAMES, 2)
        lines.append(f"{a} {b} = {draw.choice((f'{a} {b}', f'{b} {a}'))}\n")
    (folder / "text" / "lines.txt").write_text("".join(lines))
    for part, count in (("train", 64), ("validation", 10), ("test", 9)):
        with (folder / f"{part}.jsonl").open("w") as file:
            for _ in range(count):
                a, b = draw.sample(NAMES, 2)
                for task, answer in (("copy", f"{a} {b}"), ("swap", f"{b} {a}")):
                    file.write(json.dumps({"taskname": task, "words": f"{a} {b}", "answer": answer}) + "\n")


def stage_spec(folder: Path, data: Path, task: str, split: Split = ALONE, **changes: Any) -> plan.StageSpec:
    """A stage of 20 steps of 8 rows in micro-batches of 2, in `folder`."""
    steps, encoder = changes.pop("steps", 20), changes.pop("encoder", "tpmlp")
    templates = [
        plan.TaskTemplate(name, "<|VIRTUAL_PROMPT_0|> {words} = {answer}", 4, [4]) for name in ("copy", "swap")
    ]
    train, validation, test = ([str(data / f"{part}.jsonl")] for part in ("train", "validation", "test"))
    spec = plan.StageSpec(
        run="test",
        stage=folder.name,
        stage_dir=str(folder),
        task=task,
        device="cpu",
        model=changes.pop("model", SMALL),
        tokenizer=plan.TokenizerSpec("train", VOCAB) if task == "pretrain" else plan.TokenizerSpec("base"),
        parallel=split.parallel,
        batch=plan.BatchSpec(8, 2, 4 // split.data),
        trainer=plan.TrainerSpec("fp32", max_steps=steps, val_check_interval=changes.pop("validate", 10)),
        optim=plan.OptimSpec(lr=changes.pop("lr", 1e-2), warmup_steps=3, schedule="constant", offload=split.offload),
        checkpoint=plan.CheckpointSpec(save_interval_steps=changes.pop("save", None), keep_last=3),
        text=plan.TextData([str(data / "text")], document="line", seq_length=24) if task == "pretrain" else None,
        data=plan.PromptData(train, validation, test, max_seq_length=24),
        templates=templates,
        prompt=plan.PromptSpec(encoder, 32, 2) if task == "p-tuning" else None,
        generation=plan.GenerationSpec(max_new_tokens=4, batch_size=4),
    )
    return replace(spec, **changes)


class Ranks:
    """The processes of one attempt at a stage."""

    def __init__(self, spec: plan.StageSpec | FineTuneStageSpec, attempt: int = 1) -> None:
        self.kind: Kind = "hf" if spec.engine == "hf" else "megatron"
        self.paths = StagePaths(Path(spec.stage_dir))
        write_json(self.paths.spec, to_dict(spec))
        self.attempt = self.paths.attempt(attempt)
        self.attempt.logs.mkdir(parents=True, exist_ok=True)
        count = spec.parallel.world_size
        self.processes = [self._start(rank, count, attempt) for rank in range(count)]

    def _start(self, rank: int, count: int, attempt: int) -> ForkedRank:
        place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "NODE_RANK": 0}
        given = {f"HPCLM_{name}": str(value) for name, value in place.items()}
        env = environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", **given)
        return ForkedRank([str(self.paths.root), str(attempt)], env, self.attempt.log(rank), kind=self.kind)

    def wait(self) -> list[int]:
        """Exit codes in rank order; ranks that outlast the limit are killed, and the test fails with rank 0's words."""
        codes: list[int | None] = []

        def over() -> bool:
            codes[:] = [process.poll() for process in self.processes]
            return None not in codes

        try:
            wait_until("the ranks' end", over, seen=lambda: f"{codes} {self.log()[-2000:]}", pause_s=0.02)
            return [code for code in codes if code is not None]
        finally:
            for process in self.processes:
                process.kill()

    def record(self, rank: int) -> dict[str, Any]:
        return dict(json.loads(self.attempt.rank(rank).read_text()))

    def log(self, rank: int = 0) -> str:
        return self.attempt.log(rank).read_text()


def run(spec: plan.StageSpec | FineTuneStageSpec, attempt: int = 1) -> StagePaths:
    """Run a stage to its end; fails the test with the ranks' own words when it does not get there."""
    ranks = Ranks(spec, attempt)
    codes = ranks.wait()
    assert codes == [0] * len(codes), "\n".join(ranks.log(rank)[-2000:] for rank in range(len(codes)))
    return ranks.paths


def losses(paths: StagePaths, kind: str = "train") -> list[float]:
    return [row["loss"] for row in read_lines(paths.metrics) if row["kind"] == kind]


def result(paths: StagePaths) -> dict[str, Any]:
    return dict(json.loads(paths.result.read_text()))


def predictions(paths: StagePaths) -> list[str]:
    """Of all replicas, in the order of the test rows."""
    rows = [row for file in paths.predictions.glob("rank-*.jsonl") for row in read_lines(file)]
    return [row["prediction"] for row in sorted(rows, key=lambda row: row["index"])]


def checkpoint_bytes(paths: StagePaths, step: int) -> dict[str, bytes]:
    """The shards of a checkpoint, to compare runs bit by bit."""
    return {path.name: path.read_bytes() for path in sorted(paths.checkpoint(step).glob("*.safetensors"))}
