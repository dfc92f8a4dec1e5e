"""Rows and text for the shipped recipes. Standard library only: a login node makes them."""

from hpclm.datasets.assistant import assistant
from hpclm.datasets.demo import demo
from hpclm.datasets.phrasebank import phrasebank
from hpclm.datasets.squad import squad

__all__ = ["assistant", "demo", "phrasebank", "squad"]
