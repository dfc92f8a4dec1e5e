"""What may stand in a task template: fields of a row and markers of virtual tokens. The one pattern of each.

As NeMo's gpt_prompt_learning_dataset.py finds them: a field is `{name}` within one line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from hpclm.core.spec import TaskTemplate

FIELD = re.compile(r"\{(.*?)\}")
MARKER = re.compile(r"<\|VIRTUAL_PROMPT_(\d{1,6})\|>")
# a marker is removed together with the space after it if there is a space, or nothing, in front of it
_REMOVED = re.compile(r"(?:^|(?<= ))(?:<\|VIRTUAL_PROMPT_\d{1,6}\|>)+ |<\|VIRTUAL_PROMPT_\d{1,6}\|>")
# Braces over several lines are text to NeMo, and surely a mistake.
BROKEN_FIELD = re.compile(r"\{[^{}]*[\r\n][^{}]*\}")


def without_markers(text: str) -> str:
    """A template without virtual tokens."""
    return _REMOVED.sub("", text)


def marker_of(splits: Sequence[int]) -> re.Pattern[str]:
    """Markers of these splits alone."""
    return re.compile(rf"<\|VIRTUAL_PROMPT_({'|'.join(map(str, splits))})\|>")


def by_place(template: TaskTemplate) -> TaskTemplate:
    """The template with its markers numbered by their place in the text. NeMo gives the first marker the first virtual
    tokens whatever its number (megatron_base_prompt_learning_model.py, embed_input)."""
    found = [int(number) for number in MARKER.findall(template.prompt_template)]
    if sorted(found) != list(range(len(template.virtual_token_splits))):
        return template
    places = itertools.count()
    text = MARKER.sub(lambda _: f"<|VIRTUAL_PROMPT_{next(places)}|>", template.prompt_template)
    return replace(
        template, prompt_template=text, virtual_token_splits=[template.virtual_token_splits[number] for number in found]
    )


def is_row_text(template: str) -> bool:
    """Whether it is a row whose answer is the last field, at its end."""
    return len(fields(template)) > 1 and template.rstrip().endswith("}") and not BROKEN_FIELD.search(template)


def fields(template: str) -> list[str]:
    """The fields of a prompt template, each once, in order."""
    return list(dict.fromkeys(FIELD.findall(template)))
