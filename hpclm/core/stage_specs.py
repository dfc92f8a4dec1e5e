"""The class of a stored stage's spec."""

from __future__ import annotations

from hpclm.core.corpus_spec import TokenizeStageSpec
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.spec import ProgramStageSpec, StageSpec

AnySpec = StageSpec | ProgramStageSpec | TokenizeStageSpec | FineTuneStageSpec


def class_of(raw: object) -> type[AnySpec]:
    """Of `to_dict`'s output, by the section that only this class has."""
    if not isinstance(raw, dict):
        return StageSpec
    own = {"program": ProgramStageSpec, "corpus": TokenizeStageSpec, "sharding": FineTuneStageSpec}
    return next((found for section, found in own.items() if section in raw), StageSpec)
