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

import pytest
import yaml

from hpclm.core.errors import RecipeError
from hpclm.recipe.importers import KeyFate
from hpclm.recipe.importers.axolotl.translation import Axolotl
from hpclm.recipe.importers.fine_tuning.translation_base import KeyTranslation
from hpclm.recipe.importers.llama_factory.translation import LlamaFactory
from hpclm.recipe.importers.trainer.translation import TrainerArguments
from hpclm.recipe.loading import translated

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


def declared(path: Path) -> Iterator[str]:
    for one in ast.parse(path.read_text()).body:
        if isinstance(one, ast.ClassDef) and not OF_ENTRIES.fullmatch(one.name):
            for part in one.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    yield part.target.id


@pytest.mark.parametrize("tool", sorted(SOURCES))
def test_every_key_that_a_tool_declares_is_known(tool: str) -> None:
    translation, patterns = SOURCES[tool]
    files = [path for pattern in patterns for path in sorted((PEERS / tool).glob(pattern))]
    if not files:
        pytest.skip(f"set HPCLM_TEST_PEERS to a folder with a checkout of {tool}")
    known = {*translation.taken, *translation.no_effect, *translation.refused}
    unknown = {key for path in files for key in declared(path) if key not in known and not key.startswith("_")}
    assert unknown == set()
