"""Rows and text for the shipped recipes. Standard library only: a login node makes them."""

from hpclm.datasets.assistant import assistant
from hpclm.datasets.demo import demo

__all__ = ["assistant", "demo"]
