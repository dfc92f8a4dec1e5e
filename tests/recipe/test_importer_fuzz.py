"""Whatever stands in a file of another tool, or beside it, the answer is a recipe or a RecipeError."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclm.core.errors import RecipeError
from hpclm.recipe import load
from hpclm.recipe.importers.axolotl.keys import NO_EFFECT as AXOLOTL_OTHERS
from hpclm.recipe.importers.axolotl.keys import TAKEN as AXOLOTL_KEYS
from hpclm.recipe.importers.axolotl.refusals import REFUSED as AXOLOTL_REFUSED
from hpclm.recipe.importers.llama_factory import keys as llama_factory
from hpclm.recipe.importers.trainer import keys as trainer
from tests.support.fine_tuning_files import AXOLOTL, LLAMA_FACTORY, TRAINER, write_beside

WORDS = [
    *("lora", "full", "auto", "steps", "epoch", "cosine", "constant", "wandb", "chat_template", "alpaca", "qwen3"),
    *("data/words.jsonl", "words", "1e-4", "yes", "/", "..", "~", "\0", "$(touch pwned)", "{", "ds.json", "data"),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 9)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "type", "min_lr", "offload_params", "roles", "user", "columns", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
SAMPLES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama-factory": (LLAMA_FACTORY, sorted({*llama_factory.TAKEN, *llama_factory.REFUSED, *llama_factory.NO_EFFECT})),
    "axolotl": (AXOLOTL, sorted({*AXOLOTL_KEYS, *AXOLOTL_REFUSED, *AXOLOTL_OTHERS})),
    "trainer": (TRAINER, sorted({*trainer.TAKEN, *trainer.REFUSED, *trainer.NO_EFFECT})),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    write_beside(made)
    return made


def outcome(path: Path, overrides: list[str]) -> None:
    with contextlib.suppress(RecipeError):
        load(path, overrides)
    assert not (path.parent / "pwned").exists()


@pytest.mark.parametrize("tool", sorted(SAMPLES))
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_value_of_a_key_breaks_the_import(folder: Path, tool: str, data: st.DataObject) -> None:
    sample, keys = SAMPLES[tool]
    changes = data.draw(st.dictionaries(st.sampled_from(keys), VALUES, min_size=1, max_size=3))
    path = folder / f"{tool}.yaml"
    path.write_text(yaml.safe_dump({**sample, **changes}), encoding="utf-8", errors="replace")
    outcome(path, ["hpclm.model.checkpoint=base", "hpclm.instructions.train=[data/words.jsonl]"])
    outcome(path, [])


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["file_name", "formatting", "columns", "tags", "split", "hf_hub_url"]), VALUES))
def test_no_dataset_info_breaks_the_import(tmp_path_factory: pytest.TempPathFactory, entry: dict[str, Any]) -> None:
    made = tmp_path_factory.mktemp("info")
    write_beside(made)
    (made / "data" / "dataset_info.json").write_text(json.dumps({"words": entry}))
    (made / "c.yaml").write_text(yaml.safe_dump(LLAMA_FACTORY))
    outcome(made / "c.yaml", [])


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200) | st.recursive(SCALARS, lambda inner: st.lists(inner)).map(lambda x: json.dumps(x).encode())
)
def test_no_file_beside_it_breaks_the_import(folder: Path, raw: bytes) -> None:
    (folder / "odd").mkdir(exist_ok=True)
    for name in ("dataset_info.json", "ds.json", "rows.jsonl"):
        (folder / "odd" / name).write_bytes(raw)
    info = {"words": {"file_name": "rows.jsonl"}}
    for changes in ({"dataset_dir": "odd"}, {"deepspeed": "odd/ds.json"}):
        (folder / "c.yaml").write_text(yaml.safe_dump({**LLAMA_FACTORY, **changes}))
        outcome(folder / "c.yaml", [])
    (folder / "odd" / "dataset_info.json").write_text(json.dumps(info))
    (folder / "c.yaml").write_text(yaml.safe_dump({**LLAMA_FACTORY, "dataset_dir": "odd", "max_samples": 2}))
    outcome(folder / "c.yaml", [])
