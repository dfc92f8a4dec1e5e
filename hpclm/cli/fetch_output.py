"""What `hpclm model fetch` and `hpclm data fetch` show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hpclm.cli.progress_line import ProgressLine
    from hpclm.formats.huggingface.hub_transfer import Progress


def fetch_shown(name: str, kind: str, out: Path | None, *, remote_code: bool, as_json: bool) -> None:
    """Fetch with a line of progress, and say where the files are."""
    from hpclm.cli.output import print_json
    from hpclm.cli.progress_line import ProgressLine
    from hpclm.formats.huggingface.fetching import Request, fetch

    line = ProgressLine(active=not as_json)
    request = Request(name, kind, None if out is None else out.absolute(), remote_code)
    try:
        made = fetch(request, lambda progress: _show(line, progress))
    except KeyboardInterrupt:
        line.end()
        typer.echo("interrupted; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None
    finally:
        line.end()
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json({"folder": made.folder, "revision": made.revision, "files": made.files, "bytes": made.bytes})
        return
    typer.echo(f"{made.folder}\n{made.files:,} files, {_size(made.bytes)}, commit {made.revision}")
    if kind == "model":
        typer.echo(f"in a recipe: model: {{checkpoint: {made.folder}}}")


def _show(line: ProgressLine, progress: Progress) -> None:
    from hpclm.cli.progress_line import duration

    if not line.is_due(progress.seconds):
        return
    left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
    words = (
        f"{progress.done:,} of {progress.files:,} files, {_size(progress.bytes)} of {_size(progress.size)}, "
        f"{progress.rate / 1e6:,.1f} MB/s{left}"
    )
    line.show(progress.seconds, words)


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**29 else f"{count / 2**20:,.1f} MiB"


def check_fetched(folder: Path, *, as_json: bool) -> None:
    """Say whether a folder is whole; raises CheckpointError with what is not."""
    from hpclm.cli.output import print_json
    from hpclm.formats.huggingface.folder_check import check_folder

    found = check_folder(folder.absolute())
    if as_json:
        print_json(
            {
                "folder": found.folder,
                "revision": found.revision,
                "files": found.files,
                "bytes": found.bytes,
                "digests_compared": found.compared,
            }
        )
        return
    how = "every digest compared" if found.compared else "headers and sizes compared; its digests are not known here"
    typer.echo(f"{found.folder}: whole, {found.files:,} files, {_size(found.bytes)}, {how}")
