"""Tokenising a corpus into Megatron's indexed data sets."""

from __future__ import annotations

from hpclm.planning.task import Task

TASK = Task(
    name="tokenize",
    sections=frozenset({"tokenizer", "resources", "container", "recovery"}),
)
