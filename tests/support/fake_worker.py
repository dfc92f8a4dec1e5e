"""A stand-in for the engine: a rank that keeps the worker's protocol and does as `behaviour.json` of the run says.

It takes the place of `hpclm/worker/entry.py` in a run's payload, so everything around the engine can be tried in
seconds. `behaviour.json`: by stage, {"seconds": 0.2, "fail": {"rank", "kind", "message"}, "kill": rank, "mute": true,
"no_result": true, "deaf": true, "show": [variable, ...], "times": n, "predictions": [[index, ...] by rank],
"examples": n}. It fails in the first submit alone, and there in the first `times` attempts (all, where left out), and
of a sweep in the run with that `seed`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from hpclm.core.files import append_line, read_object, write_json
from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.core.records import to_dict
from hpclm.core.sealed import write_sealed
from hpclm.formats.checkpoint_manifest import Manifest, StoredFile

_NAMES = (
    ("HPCLM_RANK", "SLURM_PROCID"),
    ("HPCLM_WORLD_SIZE", "SLURM_NTASKS"),
    ("HPCLM_LOCAL_RANK", "SLURM_LOCALID"),
    ("HPCLM_NODE_RANK", "SLURM_NODEID"),
)


class StoppedError(Exception):
    pass


def main(stage_dir: str, attempt: str) -> None:
    stage = StagePaths(Path(stage_dir))
    # next to the payload: in the run, or in the sweep whose members share it
    behaviour = (read_object(Path(__file__).parents[3] / "behaviour.json") or {}).get(stage.name, {})
    if behaviour.get("mute"):
        print("ImportError: no engine in this image")
        sys.exit(1)
    rank, world, local, node = (int(os.environ.get(ours) or os.environ[slurm]) for ours, slurm in _NAMES)
    paths = stage.attempt(attempt, int(os.environ.get("HPCLM_RESTART") or 0))
    record = {
        "rank": rank,
        "node": os.environ.get("SLURMD_NODENAME", f"host-{node}"),
        "pid": os.getpid(),
        "started_at": time.time(),
        "state": "running",
    }
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN if behaviour.get("deaf") else _stop)
    state, kind, code, message = "done", "ok", 0, ""
    try:
        write_json(paths.rank(rank), record)
        print(
            f"rank {rank} of {world}, local {local}, node {node}, threads {os.environ['OMP_NUM_THREADS']}", flush=True
        )
        print(f"hpclm from {__file__}, in {Path.cwd()}", flush=True)
        print(os.environ.get("PYXIS_STANDIN", ""), flush=True)
        print(", ".join(f"{name} {len(os.environ.get(name, ''))}" for name in behaviour.get("show", [])), flush=True)
        _work(stage, paths, behaviour, rank, world)
    except StoppedError:
        state, kind, code, message = "stopped", "signal", 30, "stop requested"
    except ConnectionError:
        state, kind, code, message = "failed", "peer-lost", 20, "Connection closed by peer"
    except RuntimeError as error:
        state, kind, message = "failed", behaviour["fail"].get("kind", "error"), str(error)
        code = 10 if kind == "data" else 1
    record.update(
        state=state, kind=kind, exit_code=code, ended_at=time.time(), message=message, error_type="RuntimeError"
    )
    write_json(paths.rank(rank), record)
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedError


def _work(stage: StagePaths, paths: AttemptPaths, behaviour: dict[str, Any], rank: int, world: int) -> None:
    fails, dies = behaviour.get("fail", {}), behaviour.get("kill")
    disturbed = paths.submit == 1 and paths.restart < behaviour.get("times", 1000)
    if "seed" in behaviour:
        disturbed = disturbed and json.loads(stage.spec.read_text())["trainer"]["seed"] == behaviour["seed"]
    total = max(1, int(behaviour.get("seconds", 0.2) / 0.1))
    for step in range(1, total + 1):
        time.sleep(0.1)
        if rank == 0:
            loss = 2.0 / step
            write_json(
                stage.progress,
                {"phase": "training", "step": step, "total_steps": total, "loss": loss, "tokens_per_s": 1200.0,
                 "seconds_left": (total - step) * 0.1, "started_at": time.time(), "updated_at": time.time()},
            )  # fmt: skip
            append_line(stage.metrics, {"kind": "train", "step": step, "loss": loss, "time": time.time()})
        if disturbed and fails.get("rank") == rank:
            raise RuntimeError(fails["message"])
        if disturbed and dies == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        _notice_lost_peers(paths, world)
    _finish(stage, behaviour, rank, world)


def _notice_lost_peers(paths: AttemptPaths, world: int) -> None:
    for other in range(world):
        seen = read_object(paths.rank(other)) or {}
        if seen.get("state") == "failed" and seen.get("kind") != "peer-lost":
            time.sleep(0.05)
            raise ConnectionError


def _finish(stage: StagePaths, behaviour: dict[str, Any], rank: int, world: int) -> None:
    spec = json.loads(stage.spec.read_text())
    result = {"task": spec["task"], "steps": 1, "loss": 0.5, "val_loss": 0.25, "seconds": 1.0, "world_size": world}
    if spec["task"] == "evaluate":
        shares = behaviour.get("predictions", [[0, 2], [1]])
        for index in shares[rank] if rank < len(shares) else []:
            row = {
                "index": index,
                "taskname": "first",
                "prompt": f"q{index} =",
                "prediction": f" a\n{index}",
                "answer": "a",
            }
            stage.predictions.mkdir(exist_ok=True)
            append_line(stage.prediction(rank), row)
        result |= {"examples": behaviour.get("examples", 3), "scores": {"first": {"exact_match": 0.5, "examples": 3}}}
    elif rank == 0:
        content, name = b"weights", "shard-00000.safetensors"
        stage.checkpoint(1).mkdir(parents=True, exist_ok=True)
        (stage.checkpoint(1) / name).write_bytes(content)
        files = {name: StoredFile(len(content), hashlib.sha256(content).hexdigest())}
        write_json(stage.checkpoint(1) / "manifest.json", to_dict(Manifest(files, {}, {})))
        (stage.checkpoints / "model.json").write_text("{}")
        write_json(stage.best, {"checkpoint": "step-00000001", "step": 1, "val_loss": 0.25})
        write_json(stage.latest, {"checkpoint": "step-00000001", "step": 1})
    if rank == 0 and not behaviour.get("no_result"):
        time.sleep(0.2)
        write_sealed(stage.result, result)


if __name__ == "__main__":
    main(*sys.argv[1:3])
