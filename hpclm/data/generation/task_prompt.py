"""The prompt: some seed rows as examples, and the request for more of their kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from hpclm.data.generation.instruction_rows import InstructionRow

NO_INPUT = "<noinput>"


def drawn(seeds: Sequence[InstructionRow], examples: int, seed: int, request: int) -> list[InstructionRow]:
    """The examples of a request: the same for the same seed and number of the request."""
    return Random(f"{seed}/{request}").sample(seeds, examples)


def make_prompt(examples: Sequence[InstructionRow], tasks: int, language: str | None, topic: str | None) -> str:
    """Ask for the tasks that follow the examples, up to number `tasks`."""
    first = len(examples) + 1
    wanted = [
        "Every instruction is new: neither a task of the list nor the same task in other words.",
        "Vary the kind of task (questions, rewriting, classification, extraction, reasoning, creative writing and "
        "others), the verb, the length and the difficulty; mix questions with requests.",
        "A language model must be able to do the task by text alone: without pictures, sound, files, the internet or "
        "a later reminder.",
        "An instruction is one or two sentences. The input is a concrete, realistic text that the task works on, no "
        f"placeholder, and at most 100 words; a task that needs none has {NO_INPUT} as its input.",
        "The output is a complete and correct answer to instruction and input, usually of fewer than 100 words.",
        f"Write in {language}." if language else "Write in the language of the examples.",
    ]
    if topic:
        wanted.insert(0, f"Every task is about {topic}.")
    rules = "\n".join(f"- {line}" for line in wanted)
    numbered = "".join(_example(number, row) for number, row in enumerate(examples, 1))
    return (
        f"Below is the beginning of a list of {tasks} tasks for training an assistant. Continue the list: write the "
        f"tasks {first} to {tasks}.\n\n{rules}\n\nKeep exactly the form of the list: the number, the words "
        "Instruction, Input and Output in English, and a line ### before each task. Write nothing else.\n\n"
        f"{numbered}###\n\nContinue with {first}. Instruction:"
    )


def _example(number: int, row: InstructionRow) -> str:
    # on one line, as the form has it
    instruction = re.sub(r"\s+", " ", row.instruction).strip().rstrip(":")
    return (
        f"###\n{number}. Instruction: {instruction}\n{number}. Input:\n{row.input.strip() or NO_INPUT}\n"
        f"{number}. Output:\n{row.output.strip()}\n"
    )
