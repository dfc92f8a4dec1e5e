"""Random recipes: nothing passes that Megatron-LM's own checks refuse, and nothing they accept is refused without a
reason, of which the first steps would tell.

The verdicts were recorded from three releases (tests/support/megatron_verdicts.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from hpclm.core.errors import HpclmError
from hpclm.planning import make_plan
from hpclm.recipe import load
from tests.support.indexed_pair import indexed_pair
from tests.support.random_recipes import Section, draw

RECORDED = Path(__file__).with_name("megatron_verdicts.txt")
COUNT = 3000
ACCEPTED, SCHEDULE = ".", "s"
# Rules for which Megatron-LM's checks have no match, and what would happen.
LATER = {
    "micro-batches % pipeline == 0": "RuntimeError in the interleaved schedule",
    "rampup % (micro · data · pipeline) == 0": "RuntimeError in the interleaved schedule",
    "rampup % (micro · data) == 0": "AssertionError when the batch has grown to it",
    "global % (micro · data) == 0": "AssertionError when the batch has grown to it",
    "rope needs an even kv_channels": "shapes that do not fit in the first attention",
    "num_attention_heads % num_query_groups == 0": "shapes that do not fit in the first attention",
    "experts with tensor > 1 need sequence": "ValueError in the first layer of experts",
    "moe_router_topk <= num_moe_experts": "RuntimeError in the first router",
    "expert_tensor != tensor needs expert > 1": "gradients of experts summed over the wrong ranks",
    "modules are in the model": "nothing is recomputed",
    "layers of a stage % recompute.num_layers == 0": "IndexError in the first step",
    "sequence length % tensor == 0": "AssertionError in the first scatter",
    "sequence length % (tensor · context) == 0": "AssertionError in the first scatter",
    "layers of the other stages": "pipeline stages without layers",
    "keys of experts": "no effect",
    "recipe": "the recipe contradicts itself",
    # engine megatron-lm, which does not know the image's release
    "no bias with experts": "AssertionError before core_r0.15",
    "warm-up < decay": "AssertionError of the schedule, from a warm-up that is a share of the whole run",
}

# Warnings. A short trial of a long run is no mistake, and hpclm's schedule has a rate for it.
SHORT_RUN = {"warmup_steps + constant_steps <= steps", "warm-up < steps, constant < steps"}
# Which releases refuse it is said; the image's is not known.
OLDER = {"groups >= tensor before core_r0.16", "no fp16 with experts in core_v0.14"}


class Judged(NamedTuple):
    """Rules of the errors, and of everything that was found."""

    errors: set[str]
    rules: set[str]


def recorded() -> dict[str, str]:
    """Of each release its verdicts, by the recipes' numbers."""
    found: dict[str, str] = {}
    for line in RECORDED.read_text().splitlines():
        if not line.startswith("#"):
            release, _, verdicts = line.split()
            found[release] = found.get(release, "") + verdicts
    return found


def judged(folder: Path, recipe: Section, engine: str) -> Judged:
    length = recipe.pop("seq_length")
    recipe |= {
        "engine": engine,
        "tokenizer": {"vocab_file": "vocab.json", "merges_file": "merges.txt"},
        "indexed": {"paths": ["corpus"], "split": [98, 2, 0], "seq_length": length},
    }
    if engine == "megatron-lm":
        recipe["megatron"] = {"script": "/opt/pretrain_gpt.py"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    try:
        found = make_plan(load(path)).findings
    except HpclmError:
        return Judged({"recipe"}, {"recipe"})
    return Judged({one.rule for one in found if one.severity == "error"}, {one.rule for one in found})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "vocab.json").write_text(json.dumps({f"t{number}": number for number in range(512)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    indexed_pair(folder / "corpus", 400, 200)
    return folder


@pytest.fixture(scope="module")
def releases() -> dict[str, str]:
    found = recorded()
    assert {len(verdicts) for verdicts in found.values()} == {COUNT}
    assert all(900 < verdicts.count(ACCEPTED) < 1500 for verdicts in found.values())
    return found


@pytest.mark.parametrize(
    ("engine", "compared"),
    [("megatron", ["core_v0.16.1"]), ("megatron-lm", ["core_v0.12.3", "core_v0.16.1", "core_v0.19.0"])],
)
def test_random_recipes_are_judged_as_by_megatron_lm(
    folder: Path, releases: dict[str, str], engine: str, compared: list[str]
) -> None:
    wrong = []
    for number in range(COUNT):
        ours = judged(folder, draw(number), engine)
        for release in compared:
            theirs = releases[release][number]
            if theirs == ACCEPTED and ours.errors and not ours.errors & set(LATER):
                wrong.append(f"recipe {number}, which {release} accepts, is refused: {ours.errors}")
            elif theirs != ACCEPTED and not ours.errors and not _is_said(theirs, ours.rules, engine, release):
                wrong.append(f"recipe {number}, which {release} refuses, is accepted")
    assert not wrong, "\n".join(wrong)


def _is_said(theirs: str, rules: set[str], engine: str, release: str) -> bool:
    """Whether a warning says why it is no error here."""
    if engine == "megatron":
        return theirs == SCHEDULE and bool(rules & SHORT_RUN)
    return release == "core_v0.12.3" and bool(rules & OLDER)
