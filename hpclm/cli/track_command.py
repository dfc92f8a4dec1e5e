"""`hpclm track`: a run's metrics for TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hpclm.core.layout import StagePaths
    from hpclm.runs.record import Run
    from hpclm.tracking.follower import Follower
    from hpclm.tracking.tracker import Sink, Tracker

_PAUSE_S = 2.0


def track(
    run: Annotated[
        str | None, typer.Argument(help="Run id, a unique prefix of one, or a path; default: the latest run.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="wandb, mlflow or tensorboard.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="What goes to files: FOLDER/RUN/STAGE; default: a folder ./TRACKER.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Short for --to tensorboard --folder FOLDER.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the run is over.")] = False,
    site: Annotated[
        str, typer.Option("--site", envvar="HPCLM_SITE", help="local, slurm, or a site profile.")
    ] = "local",
    runs_dir: Annotated[Path | None, typer.Option("--runs-dir", help="Folder of the runs.")] = None,
) -> None:
    """Give a run's metrics to a tracker, from the first step on; again, they are replaced."""
    from hpclm.core.errors import HpclmError
    from hpclm.recipe.sites import load_site
    from hpclm.runs.record import find_run
    from hpclm.runs.runs_folder import runs_folder

    tracker, place = _wanted(to, folder, tensorboard)
    found = find_run(runs_folder(runs_dir, load_site(site)), run)
    followers = _followers(found, tracker, place)
    try:
        rows = sum(one.pass_on() for one in followers)
        while follow and not _over(found):
            time.sleep(_PAUSE_S)
            rows += sum(one.pass_on() for one in followers)
        rows += sum(one.pass_on() for one in followers)
        for one in followers:
            one.close()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except HpclmError:
        raise
    except Exception as error:  # of whatever the tracker's package has
        raise _told(error, tracker, place) from error
    notes = [one.note for one in followers if one.note]
    if tracker.name == "tensorboard":
        notes = [f"tensorboard --logdir {place}"]
    typer.echo("\n".join([f"{rows} rows", *notes]) if len(notes) > 1 else "; ".join([f"{rows} rows", *notes]))


def _wanted(to: str | None, folder: Path | None, tensorboard: Path | None) -> tuple[Tracker, Path]:
    from hpclm.core.errors import HpclmError
    from hpclm.core.registries import TRACKERS
    from hpclm.tracking.tracker import tracker_named

    if tensorboard is not None and (to not in (None, "tensorboard") or folder is not None):
        raise HpclmError("--tensorboard FOLDER excludes --to and --folder; keep one")
    name = to or ("tensorboard" if tensorboard else None)
    if name is None:
        raise HpclmError(f"say what for: --to NAME; choose {', '.join(TRACKERS.names())}")
    return tracker_named(name), tensorboard or folder or Path(name)


def _followers(run: Run, tracker: Tracker, folder: Path) -> list[Follower]:
    import functools

    from hpclm.tracking.follower import Follower

    def sink(stage: StagePaths) -> Sink:
        from hpclm.core.sealed import read_sealed
        from hpclm.tracking.curve import curve_of

        given = (read_sealed(stage.spec) or {}).get("tracking")
        options = given.get(tracker.name) if isinstance(given, dict) else None
        return tracker.open(folder.absolute() / run.record.run / stage.name, curve_of(stage, options or {}))

    stages = [run.paths.stage(stage.name) for stage in run.record.stages]
    return [Follower(stage, functools.partial(sink, stage)) for stage in stages]


def _told(error: Exception, tracker: Tracker, folder: Path) -> Exception:
    from hpclm.core.errors import HpclmError
    from hpclm.core.secrets import masked

    if isinstance(error, ImportError):
        return HpclmError(f"{error.name or tracker.package} is not installed; pip install 'hpclm[{tracker.name}]'")
    if isinstance(error, OSError) and error.filename is not None:
        return HpclmError(f"{folder}: {error.strerror}")
    words = masked(str(error)).strip().splitlines() or [type(error).__name__]
    return HpclmError(f"{tracker.name}: {words[0]}")


def _over(run: Run) -> bool:
    from hpclm.runs.status import status_of

    return status_of([run])[0].over
