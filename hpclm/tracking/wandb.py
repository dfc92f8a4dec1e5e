"""Weights & Biases, by its own package: online where there is a key, else files that are sent later."""

from __future__ import annotations

import hashlib
import netrc
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpclm.core.secrets import masked
from hpclm.tracking.curve import Curve, numbers

# What wandb gathers by itself and no recipe says: the console, the code, the machine, its packages and its variables.
_NOTHING_ELSE: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "program": "hpclm",
    "save_code": False,
    "silent": True,
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
_INIT_S = 20.0
_LONGEST_ID = 128
_SERVER = "https://api.wandb.ai"


def run_id(curve: Curve) -> str:
    """The same for every attempt, so that a requeued run is one curve."""
    wanted = f"{curve.run}-{curve.stage}"
    return wanted if len(wanted) <= _LONGEST_ID else hashlib.sha256(wanted.encode()).hexdigest()


def mode_of(options: Mapping[str, Any]) -> str:
    """`online` or `offline`: as the recipe says, else as the environment says, else online where there is a key."""
    if options.get("mode"):
        return str(options["mode"])
    said = os.environ.get("WANDB_MODE")
    if said in ("online", "offline"):
        return said
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _SERVER).hostname
    try:
        path = os.environ.get("NETRC")
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError, RuntimeError):
        return False


def _end_service() -> None:
    """wandb's own process has written all, and knows the run's id no more."""
    import wandb

    wandb.teardown()


class _Run:
    def __init__(self, folder: Path, curve: Curve) -> None:
        self.folder, self.curve = folder, curve
        self.run = self._begun(mode_of(curve.options))
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    @property
    def note(self) -> str:
        if not self.run.offline:
            return str(self.run.url)
        return " ".join(["wandb sync", *map(str, sorted((self.folder / "wandb").glob("offline-run-*")))])

    def _begun(self, mode: str) -> Any:
        if mode == "offline":
            return self._init("offline")
        try:
            if not _has_key():
                raise ValueError("no API key is configured; name it in the site profile's secrets as WANDB_API_KEY")
            return self._init("online")
        except ImportError:
            raise
        except Exception as error:  # of the network, of the server, of wandb: the metrics are kept all the same
            words = masked(str(error)).strip().splitlines() or [type(error).__name__]
            print(f"wandb: not online ({words[0]}); kept in {self.folder}, and `hpclm track RUN --to wandb` gives them "
                  "later", file=sys.stderr, flush=True)  # fmt: skip
            _end_service()
            return self._init("offline")

    def _init(self, mode: str) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # each try makes a folder of its own here, and all of them would be synchronised
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = self.curve.options
        return wandb.init(
            # without `resume`, a run with this id is overwritten
            id=run_id(self.curve),
            project=options.get("project") or self.curve.group,
            entity=options.get("entity"),
            name=options.get("name") or self.curve.name,
            group=self.curve.run,
            job_type=self.curve.stage,
            tags=list(options.get("tags") or ()),
            config=dict(self.curve.config),
            dir=str(self.folder),
            settings=wandb.Settings(mode=mode, init_timeout=_INIT_S, **_NOTHING_ELSE),
        )

    def add(self, row: Mapping[str, Any]) -> None:
        # wandb's own step only rises; rows of several kinds share one of ours
        self.run.log({"step": row["step"], "_timestamp": row["time"], **dict(numbers(row))})

    def flush(self) -> None:
        """wandb writes by itself."""

    def close(self) -> None:
        self.run.finish()
        _end_service()


class WeightsAndBiases:
    """A run for each stage."""

    name = "wandb"
    package = "wandb"

    def open(self, folder: Path, curve: Curve) -> _Run:
        return _Run(folder, curve)


TRACKER = WeightsAndBiases()
