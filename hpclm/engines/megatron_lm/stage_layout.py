"""The value of Megatron-LM's --pipeline-model-parallel-layout, as it would be refused when the model is built.

Source: Megatron-LM core_v0.16.1, megatron/core/transformer/pipeline_parallel_layer_layout.py (parse_str_to_list,
validate_layer_layout).
"""

from __future__ import annotations

import re

_LETTERS = {"E": "the embedding", "t": "a layer", "m": "multi-token prediction", "L": "the loss"}
_MOST = 1 << 16
_GROUP, _LETTER = re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)")


def stages(layout: str) -> list[str]:
    """`Ett|(t|)*2,L` → [`Ett`, `t`, `t`, `L`]. Raises ValueError."""
    text = layout.replace(",", "")
    for pattern in (_GROUP, _LETTER):
        size = len(text) + sum(len(one[1]) * int(one[2]) for one in pattern.finditer(text))
        if size > _MOST:
            raise ValueError(f"is longer than {_MOST} letters")
        text = pattern.sub(lambda one: one[1] * int(one[2]), text)
    strange = next((letter for letter in text if letter not in _LETTERS and letter != "|"), None)
    if strange is not None:
        known = ", ".join(f"{letter} ({what})" for letter, what in _LETTERS.items())
        raise ValueError(f"has {strange!r}; its letters are {known}, and | between stages")
    return text.split("|")


def wrong(layout: str, pipeline: int, layers: int, predicted: int = 0) -> str | None:
    """What is wrong with a layout for so many pipeline stages and layers, in words that follow the flag's name.

    Args:
        predicted: layers of multi-token prediction (--mtp-num-layers).
    """
    try:
        parts = stages(layout)
    except ValueError as error:
        return str(error)
    every = "".join(parts)
    if len(parts) % pipeline:
        return f"has {len(parts)} stages, not a multiple of parallel.pipeline {pipeline}"
    if every.count("t") != layers:
        return f"has {every.count('t')} layers (t), and model.num_layers is {layers}"
    if not every.startswith("E") or every.count("E") != 1:
        return "needs E once, as its first letter"
    if not every.endswith("L") or every.count("L") != 1:
        return "needs L once, as its last letter"
    return _wrong_prediction(parts, pipeline, predicted)


def _wrong_prediction(parts: list[str], pipeline: int, predicted: int) -> str | None:
    every = "".join(parts)
    if every.count("m") != predicted:
        return f"has {every.count('m')} layers of multi-token prediction (m), and --mtp-num-layers is {predicted}"
    if "m" in every and "t" in every[every.find("m") :]:
        return "needs m (multi-token prediction) behind all layers"
    if any("m" in part for part in parts[:-pipeline]):
        return "needs m (multi-token prediction) in the last part of a pipeline stage"
    if any(0 < part.count("m") < predicted for part in parts):
        return "needs each m (multi-token prediction) in the same stage"
    return None
