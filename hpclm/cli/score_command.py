"""`hpclm evaluate`: scores predictions."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

evaluate_app = typer.Typer(help="Score predictions.", no_args_is_help=True, rich_markup_mode=None)


class Kind(str, Enum):
    auto = "auto"
    squad = "squad"
    classification = "classification"
    intent_slot = "intent-slot"


@evaluate_app.callback()
def root() -> None:
    """Score predictions."""


@evaluate_app.command()
def score(
    predictions: Annotated[
        Path,
        typer.Argument(help="predictions.jsonl of a run, or a prediction file (one line per row).", show_default=False),
    ],
    truth: Annotated[Path, typer.Argument(help="The ground-truth file.", show_default=False)],
    kind: Annotated[Kind, typer.Option("--task", help="auto: detect from the answers.")] = Kind.auto,
    split: Annotated[
        str | None,
        typer.Option("--split-string", help="For a prediction file: the text in front of an answer."),
    ] = None,
    answers_only: Annotated[
        bool, typer.Option("--answers-only", help="Each line of the prediction file is an answer, without a prompt.")
    ] = False,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Metric instead of the task's usual ones; repeat for more.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """SQuAD's EM and F1, accuracy and macro F1, or intents and slots, of predictions paired with the truth by id."""
    from hpclm.cli.output import print_json
    from hpclm.metrics.answer_files import paired
    from hpclm.metrics.task_scores import kind_of
    from hpclm.metrics.task_scores import score as score_task

    results = {}
    for task, (made, wanted) in paired(predictions, truth, split, answers_only=answers_only).items():
        which = kind_of(wanted) if kind is Kind.auto else kind.value
        results[task] = {"task": which, **score_task(which, made, wanted, metrics or ())}
    if as_json:
        print_json({"scores": results})
        return
    for task, found in results.items():
        numbers = [f"{key} {value:.4f}" for key, value in found.items() if isinstance(value, float)]
        typer.echo(f"{task} ({found['task']}, {found['examples']} rows): {', '.join(numbers)}")


@evaluate_app.command()
def compare(
    run: Annotated[
        str | None, typer.Argument(help="Run id, a unique prefix of one, or a path; default: the latest run.")
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Rows to show with every answer.")] = 3,
    site: Annotated[
        str, typer.Option("--site", envvar="HPCLM_SITE", help="local, slurm, or a site profile.")
    ] = "local",
    runs_dir: Annotated[Path | None, typer.Option("--runs-dir", help="Folder of the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The evaluations of a run side by side, as of a model before and after its tuning: scores, and answers to the same
    rows."""
    from hpclm.cli.output import print_json
    from hpclm.cli.tables import comparison_lines
    from hpclm.recipe.sites import load_site
    from hpclm.runs.comparison import compare as compare_run
    from hpclm.runs.record import find_run
    from hpclm.runs.runs_folder import runs_folder

    found = compare_run(find_run(runs_folder(runs_dir, load_site(site)), run), examples)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo("\n".join(comparison_lines(found)))
