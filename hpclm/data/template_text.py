"""What may stand in a task template: fields of a row and markers of virtual tokens. The one pattern of each.

As NeMo's gpt_prompt_learning_dataset.py finds them: a field is `{name}` within one line.
"""

from __future__ import annotations

import re

FIELD = re.compile(r"\{(.*?)\}")
MARKER = re.compile(r"<\|VIRTUAL_PROMPT_(\d{1,6})\|>")
# Braces over several lines are text to NeMo, and surely a mistake.
BROKEN_FIELD = re.compile(r"\{[^{}]*[\r\n][^{}]*\}")


def fields(template: str) -> list[str]:
    """The fields of a prompt template, each once, in order."""
    return list(dict.fromkeys(FIELD.findall(template)))
