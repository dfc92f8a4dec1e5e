"""The class of a stored stage's spec."""

from __future__ import annotations

from hpclm.core.corpus_spec import TokenizeStageSpec
from hpclm.core.spec import ProgramStageSpec, StageSpec

AnySpec = StageSpec | ProgramStageSpec | TokenizeStageSpec


def class_of(raw: object) -> type[AnySpec]:
    """Of `to_dict`'s output, by the section that only this class has."""
    if not isinstance(raw, dict):
        return StageSpec
    return ProgramStageSpec if "program" in raw else TokenizeStageSpec if "corpus" in raw else StageSpec
