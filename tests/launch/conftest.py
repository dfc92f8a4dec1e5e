"""The recipe tests' corpus of broken recipes is used here too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "recipe"))
