"""Data sets of a configuration as the recipe's `instructions`."""

from __future__ import annotations

from collections.abc import Sequence

from hpclm.recipe.importers.fine_tuning.row_sources import RowSource, conflict, together
from hpclm.recipe.importers.fine_tuning.shard_settings import ShardSettings
from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.tree import Node


class RowKeys(ShardSettings):
    """What files with data sets of their own share."""

    def files(self, ours: str, node: Node | None, sources: Sequence[RowSource]) -> None:
        """The files of sources that are all here; else what to do."""
        for one in sources:
            if one.absent is not None:
                self.lacks(ours, node, f"{one.absent} give --set 'hpclm.{ours}=[FOLDER/FILE]'")
        if sources and not any(one.absent for one in sources):
            self.put(ours, node, [file for one in sources for file in one.files])

    def form(self, node: Node | None, sources: Sequence[RowSource]) -> bool:
        """Format, columns and roles of all sources, here or not; False where they do not go together."""
        why = conflict(sources)
        if why is not None:
            self.fault(node, f"the data sets cannot be one stage's rows: {why}; call them alike")
            return False
        if sources:
            form, columns, roles = together(sources)
            for key, value in (("format", form), ("columns", columns), ("roles", roles)):
                if value:
                    self.put(f"instructions.{key}", node, value)
        return True

    def split(self, key: str) -> None:
        """A share of the rows for validation, which hpclm does not cut off."""
        size = self.number(key)
        if size:
            what = f"{key} {size}: rows are not split; cut the file in two, and give both by --set "
            files = "'hpclm.instructions.train=[FILE]' 'hpclm.instructions.validation=[FILE]'"
            self.lacks("instructions.validation", self.at(key), f"{what}{files}, or {key}=0")
        elif self.at(key) is not None:
            self.fate(key, KeyFate.NO_EFFECT, "0 takes no rows")
