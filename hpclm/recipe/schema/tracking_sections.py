"""Where a stage's metrics go besides its own files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from hpclm.core.registries import TRACKERS
from hpclm.core.secrets import looks_secret
from hpclm.recipe.schema.base import Section, absolute_path, fault, one_line, shown


def _switch(value: object) -> object:
    """`true` is a section of defaults, `false` none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


def _open(text: str) -> str:
    """Text that other tools show: no secret in it."""
    one_line(text)
    if looks_secret("", text):
        raise fault("looks like a secret, and this is written to the run's folder and shown by trackers; leave it out")
    return text


def _address(text: str, info: ValidationInfo) -> str:
    one_line(text)
    if looks_secret("", text):
        raise fault(
            "has a password in it, and this is written to the run's folder; leave it out, and name "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the site profile's secrets"
        )
    return text if "://" in text else absolute_path(text, info)


_Shown = Annotated[str, AfterValidator(_open)]


class Wandb(Section):
    """Weights & Biases. `wandb: true` for the defaults. The key is a secret of the site profile: WANDB_API_KEY."""

    project: _Shown | None = Field(default=None, description="null: the recipe's name")
    entity: _Shown | None = Field(default=None, description="user or team; null: the key's own")
    name: _Shown | None = Field(default=None, description="as shown; null: RUN/STAGE")
    tags: tuple[_Shown, ...] = Field(default=(), description="of the run")
    mode: Literal["online", "offline"] | None = Field(
        default=None, description="null: online where a key is configured, else offline, for `wandb sync` later"
    )


class Mlflow(Section):
    """MLflow. `mlflow: true` for the defaults."""

    experiment: _Shown | None = Field(default=None, description="null: the recipe's name")
    uri: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None,
        description="a server's address or a folder; null: MLFLOW_TRACKING_URI where the ranks have it, else the "
        "stage's folder `mlflow`",
    )


def _foreign(trackers: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    for name in trackers:
        if TRACKERS.is_builtin(name):
            raise fault(f"{name} has a key of its own; write it as tracking.{name}")
        if name not in TRACKERS:
            installed = ", ".join(one for one in TRACKERS.names() if not TRACKERS.is_builtin(one)) or "none"
            raise fault(
                f"no installed package has a tracker {shown(name)}; install it, or choose of these: {installed}"
            )
    return trackers


class Tracking(Section):
    """Metrics for other tools, beside the run's own metrics.jsonl. A tracker that fails does not end a run."""

    tensorboard: bool = Field(default=False, description="event files in the stage's folder `tensorboard`")
    wandb: Annotated[Wandb | None, BeforeValidator(_switch)] = Field(
        default=None, description="Weights & Biases; `true`: as the defaults say"
    )
    mlflow: Annotated[Mlflow | None, BeforeValidator(_switch)] = Field(
        default=None, description="MLflow; `true`: as the defaults say"
    )
    others: Annotated[dict[str, dict[str, _Shown]], AfterValidator(_foreign)] = Field(
        default_factory=dict, description="trackers of other packages: name, and its options"
    )

    @property
    def trackers(self) -> dict[str, dict[str, Any]]:
        """Those that are on, with their options."""
        found: dict[str, dict[str, Any]] = {"tensorboard": {}} if self.tensorboard else {}
        for name in ("wandb", "mlflow"):
            section: Section | None = getattr(self, name)
            if section is not None:
                found[name] = section.model_dump(mode="json", exclude_none=True)
        return found | {name: dict(options) for name, options in self.others.items()}
