"""`hpclm data`: prepare data sets, and show rows as the model will see them."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Prepare data sets and check rows.", no_args_is_help=True, rich_markup_mode=None)


class Labels(str, Enum):
    all = "all"
    nemo = "nemo"


class DataSet(str, Enum):
    assistant = "assistant"
    squad = "squad"
    financial_phrasebank = "financial-phrasebank"


@data_app.command()
def prepare(
    name: Annotated[DataSet, typer.Argument(help="The data set.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="Its published files.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Output folder.", show_default=False)],
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the shuffle; default: as in NeMo's script.")
    ] = None,
    labels: Annotated[
        Labels, typer.Option("--labels", help="assistant: nemo loses and merges the slots that NeMo's script does.")
    ] = Labels.all,
    escaped: Annotated[bool, typer.Option("--ascii", help="Write \\uXXXX for other characters, as NeMo does.")] = False,
) -> None:
    """Prompt-learning rows of a public data set, split as NeMo's scripts split it, with ground-truth files."""
    from functools import partial

    from hpclm.data import sources

    seeded = partial(sources.phrasebank) if seed is None else partial(sources.phrasebank, seed=seed)
    assistant = partial(sources.assistant) if seed is None else partial(sources.assistant, seed=seed)
    makers: dict[DataSet, Callable[..., list[Path]]] = {
        DataSet.assistant: partial(assistant, labels=labels.value),
        DataSet.squad: sources.squad,
        DataSet.financial_phrasebank: seeded,
    }
    for path in makers[name](source, out, escaped=escaped):
        if path.suffix == ".jsonl":
            with path.open("rb") as stream:
                typer.echo(f"{path}: {sum(1 for _ in stream)} rows")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="ORG/NAME[@REVISION]", help="A data set on the Hub.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder of plain files; default: the Hub's cache (HF_HOME).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch the parquet, jsonl and json files of a data set on the Hugging Face Hub, as `model fetch` does a model."""
    from hpclm.cli.fetch_output import fetch_shown

    fetch_shown(name, "dataset", out, remote_code=False, as_json=as_json)


@data_app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("demo-data"),
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same files.")] = 1234,
) -> None:
    """The data of recipes/demo.yaml: text, and two small tasks."""
    from hpclm.data import sources

    sources.demo(out, seed)
    typer.echo(f"written to {out}")


@data_app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe whose rows are checked.", show_default=False)],
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The same as --set.", show_default=False)
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a value: KEY.KEY=VALUE.")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Stage to check; default: all with rows.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Rows to show from each file.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every row against its template: errors, lengths, what is truncated, left out
    and learned, and what the model will see. Rows of instructions need transformers."""
    from hpclm.cli.output import print_findings, print_json
    from hpclm.cli.tables import instruction_check_lines, row_check_lines
    from hpclm.planning import make_plan
    from hpclm.planning.row_report import RowCheck, check_rows
    from hpclm.recipe import load
    from hpclm.runs.submit import refuse_errors

    plan = make_plan(load(recipe, [*(overrides or ()), *(assignments or ())]))
    print_findings(plan, ("warning",))
    refuse_errors(plan)
    found = check_rows(plan, stage, examples)
    if as_json:
        print_json({"files": [one.to_dict() for one in found]})
    else:
        blocks = (row_check_lines(one) if isinstance(one, RowCheck) else instruction_check_lines(one) for one in found)
        typer.echo("\n\n".join("\n".join(block) for block in blocks))
