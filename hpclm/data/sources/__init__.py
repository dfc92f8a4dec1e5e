"""Rows and text for the shipped recipes. Standard library only: a login node makes them."""

from hpclm.data.sources.assistant import assistant
from hpclm.data.sources.demo import demo
from hpclm.data.sources.phrasebank import phrasebank
from hpclm.data.sources.squad import squad

__all__ = ["assistant", "demo", "phrasebank", "squad"]
