"""The engine `corpus`: hpclm's own tokenising, a process a rank."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hpclm.core.corpus_spec import CorpusSpec, TokenizeStageSpec
from hpclm.core.errors import DataError
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import taken
from hpclm.core.spec import NodeNeeds, TokenizerSpec
from hpclm.data.corpus.inputs import PACKED, corpus_files
from hpclm.engines.external import stages_before
from hpclm.planning import lowering, vocabulary
from hpclm.planning.base_model import BaseModel
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan
from hpclm.planning.specs import is_in_run, tokens_of
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.schema.base import Section


class Corpus:
    """Tokenises a corpus; each rank takes pieces of it, and the first one joins what all have made."""

    name = "corpus"
    tasks = ("tokenize",)
    packages = ("numpy", "tokenizers")

    @cached_property
    def own_sections(self) -> dict[str, tuple[type[Section], str]]:
        from hpclm.engines.corpus.section import Tokenize

        return {"tokenize": (Tokenize, "needed by task tokenize")}

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        stage, recipe = request.stage, request.stage.recipe
        for key in ("base", "prompts"):
            if getattr(recipe, key) is not None:
                stage.error((key,), "is for models; list earlier stages in `after`", "tokenize reads text")
        if recipe.resources.device == "gpu":
            what = "reserves GPUs, which tokenising does not use; set it to cpu for this stage"
            stage.warning(("resources", "device"), what, "no GPU is needed")
        resources = lowering.resources(stage)
        world = resources.nodes * resources.devices_per_node
        parallel = ParallelSpec(1, 1, world, world, resources.nodes, resources.devices_per_node)
        corpus = _corpus(stage)
        plan = StagePlan(
            name=recipe.name,
            task=recipe.task,
            engine=recipe.engine,
            depends_on=stages_before(request),
            resources=resources,
            container=lowering.container(stage),
            parallel=parallel,
            gradient_accumulation_steps=None,
            total_steps=None,
            memory=None,
            spec=None if corpus is None else self._spec(stage, corpus, parallel),
            recovery=lowering.recovery(stage),
        )
        made = () if corpus is None else tuple(corpus.output(key) for key in corpus.keys)
        return plan, BaseModel(data_sets=made)

    def _spec(self, stage: StageContext, corpus: CorpusSpec, parallel: ParallelSpec) -> TokenizeStageSpec:
        tokenizer = corpus.tokenizer
        files = (tokenizer.vocab_file, tokenizer.merges_file, tokenizer.tokenizer_file)
        return TokenizeStageSpec(
            run="",
            stage=stage.recipe.name,
            stage_dir="",
            device="cpu",
            parallel=parallel,
            corpus=corpus,
            recovery=lowering.recovery(stage),
            needs=NodeNeeds(
                packages=[*self.packages, *_readers(stage, corpus)],
                inputs=[*_there(corpus), *(path for path in files if path is not None), *_folder(stage, corpus)],
            ),
        )


def _corpus(stage: StageContext) -> CorpusSpec | None:
    from hpclm.engines.corpus.section import Tokenize

    written = stage.recipe.own_section("tokenize", Tokenize)
    if written is None:
        stage.needs(("tokenize",), "inputs, the files and folders of text")
    tokenizer = _tokenizer(stage)
    if written is None or tokenizer is None:
        return None
    return taken(
        CorpusSpec,
        written,
        tokenizer=tokenizer,
        prefix=written.out or tokens_of(stage.recipe.name),
        form=written.format,
        keys=list(written.json_keys),
    )


def _tokenizer(stage: StageContext) -> TokenizerSpec | None:
    if stage.recipe.tokenizer is None:
        stage.needs(("tokenizer",), "tokenizer_file, or vocab_file and merges_file")
        return None
    return vocabulary.from_recipe(stage)[0]


def _there(corpus: CorpusSpec) -> list[str]:
    """The inputs that no earlier stage has to make."""
    return [name for name in corpus.inputs if Path(name).exists()]


def _folder(stage: StageContext, corpus: CorpusSpec) -> list[str]:
    """Of the output, where it is outside the run; a finding where it is not there."""
    if is_in_run(corpus.prefix):
        return []
    folder = Path(corpus.prefix).parent
    if stage.files and not folder.is_dir():
        what = f"{folder} is no folder; make it, on a file system that the nodes share"
        stage.error(("tokenize", "out"), what, "the output's folder exists")
    return [str(folder)]


def _readers(stage: StageContext, corpus: CorpusSpec) -> list[str]:
    """Packages that the tokenizer and the kinds of files need; a finding where there are no files."""
    found = ["sentencepiece"] if corpus.tokenizer.sentencepiece else []
    if not stage.files:
        return found
    try:
        files = corpus_files(corpus)
    except DataError as error:
        # an earlier stage may make it
        tell = stage.warning if stage.recipe.after and len(_there(corpus)) < len(corpus.inputs) else stage.error
        tell(("tokenize", "inputs"), str(error), "text exists")
        return found
    if any(form == "parquet" for _, form in files):
        found.append("pyarrow")
    if any(path.suffix == PACKED[-1] for path, _ in files):
        found.append("zstandard")
    return found


ENGINE = Corpus()
