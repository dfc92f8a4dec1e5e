"""MLflow, by its package mlflow-skinny: a server, or a folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpclm.core.errors import HpclmError
from hpclm.core.secrets import masked
from hpclm.tracking.curve import Curve, numbers

# What an older server takes; newer ones take more.
_LONGEST_VALUE = 500
_LONGEST_KEY = 250
_PARAMS_A_CALL = 100
_METRICS_A_CALL = 1000
_ODD = re.compile(r"[^\w./ -]")
_TAG = "hpclm.curve"
_ENVIRONMENT = {
    # the package's default is minutes for a server that does not answer
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # folders are all that mlflow-skinny has without a server; mlflow 3.7 and later ask for this
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


class _Run:
    def __init__(self, folder: Path, curve: Curve) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        uri = curve.options.get("uri") or os.environ.get("MLFLOW_TRACKING_URI") or str(folder)
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
            uri = f"file://{quote(str(Path(uri).absolute()))}"
        self.waiting: list[Any] = []
        self.client = _client(MlflowClient, uri)
        self.run = self._begun(curve)
        ui = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {uri}"
        self.note = masked(ui if uri.startswith("file:") else uri)

    def _begun(self, curve: Curve) -> str:
        from mlflow.entities import Param

        name = curve.options.get("experiment") or curve.group
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        # metrics can only be appended, and the steps that a resumed run repeats would be there twice
        for old in self.client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{curve.name}'"):
            self.client.delete_run(old.info.run_id)
        run: str = self.client.create_run(experiment, run_name=curve.name, tags={_TAG: curve.name}).info.run_id
        params = [Param(key, value) for key, value in _flat(curve.config)]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self.client.log_batch(run, params=params[start : start + _PARAMS_A_CALL])
        return run

    def add(self, row: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        at_ms = int(row["time"] * 1000)
        self.waiting += [Metric(_ODD.sub("_", name), value, at_ms, row["step"]) for name, value in numbers(row)]

    def flush(self) -> None:
        while self.waiting:
            self.client.log_batch(self.run, metrics=self.waiting[:_METRICS_A_CALL])
            del self.waiting[:_METRICS_A_CALL]

    def close(self) -> None:
        self.flush()
        self.client.set_terminated(self.run)


def _client(make: Any, uri: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return make(tracking_uri=uri)
    except MlflowException as error:
        if uri.startswith(("file:", "http")):
            raise
        raise HpclmError(
            f"tracking.mlflow.uri: {masked(uri)} needs the package mlflow, and mlflow-skinny is installed "
            f"({masked(str(error)).splitlines()[0]}); give the address of a server or a folder"
        ) from None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Parameters of MLflow, `optim.lr` for one; lists as JSON, and nothing for null."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
        return
    if value is None:
        return
    text = value if isinstance(value, str) else json.dumps(value)
    yield _ODD.sub("_", key)[:_LONGEST_KEY], text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


class MLflow:
    """A run of MLflow for each stage."""

    name = "mlflow"
    package = "mlflow-skinny"

    def open(self, folder: Path, curve: Curve) -> _Run:
        return _Run(folder, curve)


TRACKER = MLflow()
