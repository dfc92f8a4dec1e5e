"""Rows: `data check RECIPE`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tests.fuzz import odd_values, raw_bytes, trees
from tests.fuzz.kinds import bases
from tests.support import samples


def make(rng: Random, folder: Path) -> list[str]:
    raw_bytes.special_files(folder)
    recipe = samples.single() if rng.random() < 0.7 else samples.changed()
    if "checkpoint" in recipe["model"]:
        base = bases.write_base(folder)
        if rng.random() < 0.12:
            changed = trees.mutated(json.loads(bases.tokenizer()), rng, odd_values.json_value)
            (base / "tokenizer.json").write_bytes(raw_bytes.encoded(trees.json_text(changed)))
    if rng.random() < 0.1:
        recipe["task_templates"][0]["prompt_template"] = rng.choice(_TEMPLATES)
    samples.write(folder, recipe)
    role = folder / f"{rng.choice(('train', 'validation', 'test'))}.jsonl"
    if rng.random() < 0.06:
        raw_bytes.replace_special(role, rng)
    else:
        role.write_bytes(_file(rng))
    if rng.random() < 0.1:
        text = folder / "text" / "a.txt"
        text.write_bytes(raw_bytes.damaged(text.read_bytes(), rng, 3))
    shown = rng.choice(([], [], ["--json"], ["--examples", rng.choice(("0", "5", "9" * 20))], ["--stage", "ptune"]))
    return ["data", "check", "recipe.yaml", *shown]


_TEMPLATES = (
    "<|VIRTUAL_PROMPT_0|> {words}{words} = {answer}",
    "<|VIRTUAL_PROMPT_0|> {words!r} = {answer}",
    "<|VIRTUAL_PROMPT_0|> {words:>5} = {answer}",
    "<|VIRTUAL_PROMPT_0|> {words.__class__} {answer}",
    "<|VIRTUAL_PROMPT_0|> {words}\u202e\x9b = {answer}",
    "<|VIRTUAL_PROMPT_0|> {taskname} {words} = {answer}",
)


def _file(rng: Random) -> bytes:
    good = samples.ROW
    lines = [json.dumps(good).encode() for _ in range(rng.choice((1, 8, 30)))]
    if rng.random() < 0.3:
        return b"".join(_good(rng) + b"\n" for _ in range(rng.randint(1, 20)))
    for _ in range(rng.choice((1, 1, 2, 5))):
        lines.insert(rng.randint(0, len(lines)), _row(rng))
    end = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\x85", b"\n\n"))
    data = end.join(lines) + rng.choice((b"\n", b"", b"\x00", b"\n\n \n"))
    way = rng.random()
    if way < 0.05:
        return b"\xef\xbb\xbf" + data
    if way < 0.1:
        return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32")), "surrogatepass")
    if way < 0.25:
        return raw_bytes.damaged(data, rng, 4)
    return data


def _good(rng: Random) -> bytes:
    """A row of text, though of odd text."""
    row = {**samples.ROW, "words": odd_values.text(rng), "answer": rng.choice(("a", "yes", odd_values.text(rng)))}
    return raw_bytes.encoded(json.dumps(row, ensure_ascii=rng.random() < 0.5))


def _row(rng: Random) -> bytes:
    way = rng.random()
    if way < 0.6:
        return raw_bytes.encoded(trees.json_text(trees.mutated(samples.ROW, rng, odd_values.json_value)))
    if way < 0.7:
        found = odd_values.json_value(rng)
        return raw_bytes.encoded(trees.json_text(found))
    if way < 0.8:
        return json.dumps({**samples.ROW, "words": "word " * rng.choice((1000, 400_000))}).encode()
    if way < 0.9:
        return raw_bytes.encoded(json.dumps({**samples.ROW, "words": odd_values.text(rng)}, ensure_ascii=False))
    return raw_bytes.damaged(json.dumps(samples.ROW).encode(), rng, 3)
