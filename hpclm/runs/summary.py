"""The summary of a collected run, for people. Pure."""

from __future__ import annotations

from typing import Any

from hpclm.core.clock import clock


def markdown(facts: dict[str, Any]) -> str:
    """`summary.md` from the facts of `summary.json`."""
    lines = [f"# {facts['run']}", ""]
    submitted = clock("%Y-%m-%d %H:%M:%S %Z", facts["created_at"])
    lines += [
        f"- recipe: `{facts['recipe']}`",
        *[f"- override: `{override}`" for override in facts["overrides"]],
        f"- site: {facts['site']}, submitted {submitted}",
        *_environment(facts["environment"]),
        "",
    ]
    if facts["scores"]:
        lines += ["## Scores", "", *_scores(facts["scores"]), ""]
    lines += ["## Stages", "", *_stages(facts), ""]
    lines += ["## Files", "", *_files(facts), ""]
    return "\n".join(lines)


def _environment(known: dict[str, Any]) -> list[str]:
    lines = []
    if known.get("command"):
        lines.append(f"- command: `{known['command']}`")
    for name, state in (known.get("git") or {}).items():
        if state:
            dirty = " with uncommitted changes" if state.get("dirty") else ""
            lines.append(f"- code ({name}): commit {state['commit'][:12]}{dirty}")
    return lines


def _scores(scores: dict[str, Any]) -> list[str]:
    """A table with a row per task and a column per measure that any task has."""
    measures = sorted({key for one in scores.values() for key in one if key != "examples"})
    lines = [
        "| task | examples | " + " | ".join(measures) + " |",
        "|---|---:|" + "---:|" * len(measures),
    ]
    for task, one in scores.items():
        cells = [number(one.get(measure)) for measure in measures]
        lines.append(f"| {task} | {number(one.get('examples'))} | " + " | ".join(cells) + " |")
    return lines


def _stages(facts: dict[str, Any]) -> list[str]:
    lines = [
        "| stage | task | ranks | TP×PP×DP | steps | loss | val loss | best val loss | seconds | submits |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for stage in facts["stages"]:
        result, split = stage["result"], facts["parallel"].get(stage["name"], {})
        degrees = "×".join(number(split.get(key)) for key in ("tensor_parallel", "pipeline_parallel", "data_parallel"))
        cells = [number(result.get(key)) for key in ("steps", "loss", "val_loss", "best_val_loss", "seconds")]
        lines.append(
            f"| {stage['name']} | {stage['task']} | {stage['ranks']} | {degrees} | "
            + " | ".join(cells)
            + f" | {stage['submits']} |"
        )
    return lines


def _files(facts: dict[str, Any]) -> list[str]:
    lines = []
    if facts["evaluation"]:
        lines += [
            f"- `test-results.txt`: the predictions of stage {facts['evaluation']}, one line a test example, in order",
            "- `predictions.jsonl`: the same with index, task, prompt and answer; `scores.json`: the scores",
        ]
    for stage in facts["stages"]:
        for name in ("best", "last"):
            if stage[name]:
                at = f"step {stage[name].get('step')}"
                loss = stage[name].get("val_loss")
                shown = f", val loss {number(loss)}" if loss is not None else ""
                lines.append(f"- `checkpoints/{stage['name']}/{name}`: {at}{shown}")
    lines += [
        "- `stages/`: each stage's specification, result and metrics",
        "- `recipe.yaml` as written, `resolved.json` with every default, `plan.json`, `run.json`, `environment.json`",
    ]
    return lines


def number(value: Any) -> str:
    """A short number; a dash if there is none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
