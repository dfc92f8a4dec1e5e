"""The tools' own example files: every key of them is known, and each becomes a recipe or is refused with a reason.

HPCLM_TEST_PEERS names a folder with checkouts of hiyouga/LLaMA-Factory, axolotl-ai-cloud/axolotl and huggingface/trl.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclm.core.errors import RecipeError
from hpclm.recipe.importers import KeyFate
from hpclm.recipe.importers.axolotl.translation import Axolotl
from hpclm.recipe.importers.fine_tuning.translation_base import KeyTranslation
from hpclm.recipe.importers.llama_factory.translation import LlamaFactory
from hpclm.recipe.importers.trainer.translation import TrainerArguments
from hpclm.recipe.loading import translated
from tests.support.fine_tuning_files import AXOLOTL, LLAMA_FACTORY, TRAINER, write_beside, write_config

PEERS = Path(os.environ.get("HPCLM_TEST_PEERS", "/nonexistent"))
# Misspelled in the tools' own examples
MISSPELLED = {"context_parapllel_size"}
TOOLS: list[tuple[str, tuple[str, ...], type[KeyTranslation], str]] = [
    (
        "LLaMA-Factory",
        ("train_lora", "train_full", "train_qlora", "extras", "megatron", "megatron_bridge", "ktransformers", "ascend"),
        LlamaFactory,
        "model_name_or_path",
    ),
    ("axolotl", ("",), Axolotl, "base_model"),
]


@pytest.mark.parametrize(("tool", "folders", "translation", "mark"), TOOLS, ids=[one[0] for one in TOOLS])
def test_the_examples_of_a_tool(
    tool: str, folders: tuple[str, ...], translation: type[KeyTranslation], mark: str
) -> None:
    if not (PEERS / tool).is_dir():
        pytest.skip(f"set HPCLM_TEST_PEERS to a folder with a checkout of {tool}")
    known = {*translation.taken, *translation.no_effect, *translation.refused}
    files = [path for one in folders for path in sorted((PEERS / tool / "examples" / one).rglob("*.y*ml"))]
    unknown, seen = {}, 0
    for path in files:
        tree = yaml.safe_load(path.read_text())
        if not isinstance(tree, dict) or mark not in tree:
            continue
        seen += 1
        strange = {str(key) for key in tree} - known - MISSPELLED
        if strange:
            unknown[str(path)] = strange
        with contextlib.suppress(RecipeError):
            notes = translated(path)[2]
            assert notes
            assert {note.key for note in notes if note.fate is KeyFate.UNKNOWN} <= MISSPELLED
    assert unknown == {}
    assert seen > 20


SAMPLES = {"LLaMA-Factory": LLAMA_FACTORY, "axolotl": AXOLOTL, "trl": {**TRAINER, "completion_only_loss": True}}
# What plugins of axolotl that are not there turn on by themselves
OTHERS = {"dense_mixer", "grokfast_alpha", "nemo_gym_enabled", "spectrum_top_fraction"}
# Where a tool declares its keys; of axolotl's classes those that are the file's own, not an entry's of a list in it.
SOURCES: dict[str, tuple[type[KeyTranslation], list[str]]] = {
    "LLaMA-Factory": (LlamaFactory, ["src/llamafactory/hparams/*.py"]),
    "axolotl": (Axolotl, ["src/axolotl/utils/schemas/*.py", "src/axolotl/integrations/**/args.py"]),
    "trl": (TrainerArguments, ["trl/trainer/sft_config.py", "trl/trainer/model_config.py", "trl/scripts/utils.py"]),
}
OF_ENTRIES = re.compile(
    r".*(Dataset|Type|Prompter|Spec|TokensConfig)$|(EBFT|Diffusion|Hatchery|Mora|QAT|PTQ|LoftQ|Peft|FSDP|TRL|Vllm"
    r"|SelectiveCheckpointing|DynamicCheckpoint)Config|LrGroup|.*(WCapabilities|Mixin|InternalConfig)|CompressionArgs"
    r"|Dataset(Mixture)?Config|(GPU|Env)Capabilities|.*Enum|UserDefined.*|InferenceServerType|MoraType"
)


def declared(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys, and their defaults where these are plain values (else None)."""
    for one in ast.parse(path.read_text()).body:
        if isinstance(one, ast.ClassDef) and not OF_ENTRIES.fullmatch(one.name):
            for part in one.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    yield part.target.id, default_of(part.value)


def default_of(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        named = [one.value for one in value.keywords if one.arg == "default"]
        value = next(iter([*named, *value.args]), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def sources_of(tool: str) -> list[Path]:
    files = [path for pattern in SOURCES[tool][1] for path in sorted((PEERS / tool).glob(pattern))]
    if not files:
        pytest.skip(f"set HPCLM_TEST_PEERS to a folder with a checkout of {tool}")
    return files


@pytest.mark.parametrize("tool", sorted(SOURCES))
def test_every_key_that_a_tool_declares_is_known(tool: str) -> None:
    translation = SOURCES[tool][0]
    known = {*translation.taken, *translation.no_effect, *translation.refused}
    found = {key for path in sources_of(tool) for key, _ in declared(path) if not key.startswith("_")}
    assert found - known == set()


@pytest.mark.parametrize("tool", sorted(SOURCES))
def test_no_default_of_a_key_is_refused(tool: str, tmp_path: Path) -> None:
    write_beside(tmp_path)
    given = ["hpclm.model.checkpoint=base", "hpclm.instructions.train=[data/words.jsonl]"]
    for path in sources_of(tool):
        for key, default in declared(path):
            if default is None or key in OTHERS or default == SAMPLES[tool].get(key):
                continue
            file = write_config(tmp_path, SAMPLES[tool], **{key: default})
            assert translated(file, given)[2], key
