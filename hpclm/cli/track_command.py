"""`hpclm track`: a run's metrics for TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hpclm.runs.record import Run
    from hpclm.tracking.follower import Follower
    from hpclm.tracking.tracker import Tracker

_PAUSE_S = 2.0


def track(
    run: Annotated[
        str | None, typer.Argument(help="Run id, a unique prefix of one, or a path; default: the latest run.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder of the event files: FOLDER/RUN/STAGE.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the run is over.")] = False,
    site: Annotated[
        str, typer.Option("--site", envvar="HPCLM_SITE", help="local, slurm, or a site profile.")
    ] = "local",
    runs_dir: Annotated[Path | None, typer.Option("--runs-dir", help="Folder of the runs.")] = None,
) -> None:
    """Write a run's metrics as TensorBoard's event files, from its first step on; again, they are replaced."""
    from hpclm.core.errors import HpclmError
    from hpclm.recipe.sites import load_site
    from hpclm.runs.record import find_run
    from hpclm.runs.runs_folder import runs_folder
    from hpclm.tracking.tracker import tracker_named

    if tensorboard is None:
        raise HpclmError("say what for: --tensorboard FOLDER")
    tracker = tracker_named("tensorboard")
    found = find_run(runs_folder(runs_dir, load_site(site)), run)
    followers = _followers(found, tracker, tensorboard)
    try:
        rows = sum(one.pass_on() for one in followers)
        while follow and not _over(found):
            time.sleep(_PAUSE_S)
            rows += sum(one.pass_on() for one in followers)
        rows += sum(one.pass_on() for one in followers)
    except ImportError as error:
        raise HpclmError(f"{error.name} is not installed; pip install 'hpclm[{tracker.name}]'") from None
    except OSError as error:
        raise HpclmError(f"{tensorboard}: {error.strerror}") from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        for one in followers:
            one.close()
    typer.echo(f"{rows} rows; tensorboard --logdir {tensorboard}")


def _followers(run: Run, tracker: Tracker, folder: Path) -> list[Follower]:
    import functools

    from hpclm.tracking.follower import Follower

    stages = [run.paths.stage(stage.name) for stage in run.record.stages]
    places = [folder / run.record.run / stage.name for stage in stages]
    return [
        Follower(stage.metrics, functools.partial(tracker.open, place))
        for stage, place in zip(stages, places, strict=True)
    ]


def _over(run: Run) -> bool:
    from hpclm.runs.status import status_of

    return status_of([run])[0].over
