"""A folder with a run that is complete, one that failed, and a sweep, as hpclm leaves them; nothing is run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from hpclm.containers import LaunchSpec
from hpclm.core.layout import RunPaths, StagePaths
from hpclm.core.processes import boot_id
from hpclm.core.records import to_dict
from hpclm.core.site import Site
from hpclm.runs.record import Record, StageRecord, SubmitRecord
from hpclm.schedulers.jobs import StageJob
from tests.support import harness

AT = 1_795_000_000.0


def make_runs(folder: Path) -> None:
    """`folder`: the runs folder."""
    whole = _run(folder / "whole-0001", Site(name="local", scheduler="local"))
    for stage in whole.stages:
        _ended(RunPaths(folder / "whole-0001").stage(stage.name), stage.task)
    _local(RunPaths(folder / "whole-0001"), whole, "completed")
    broken = _run(folder / "broken-0002", Site(name="slurm", scheduler="slurm", partition="gpu"))
    _failed(RunPaths(folder / "broken-0002").stage("pretrain"))
    _scheduled(RunPaths(folder / "broken-0002"), broken)
    sweep = folder / "sweep-0003"
    members = []
    for index in range(2):
        name = f"sweep-0003.{index:03d}"
        record = _run(sweep / name, Site(name="local", scheduler="local"))
        for stage in record.stages:
            _ended(RunPaths(sweep / name).stage(stage.name), stage.task)
        members.append({"run": name, "settings": {"optim.lr": f"0.{index}"}})
    axes = [{"key": "optim.lr", "values": ["0.0", "0.1"]}]
    record_of_sweep = {"name": "sweep-0003", "created_at": AT, "axes": axes, "members": members, "metric": "val_loss"}
    _write(sweep / "sweep.json", {**record_of_sweep, "max_running": None, "version": 1})
    _write(sweep / "queue.json", {"members": [], "max_running": 1})
    _write(sweep / "queue-state.json", {"pid": 1, "boot_id": "x", "start_ticks": 1})
    fault = {"at": AT, "node": "n1", "site": "slurm", "run": "broken-0002", "stage": "pretrain", "reason": "ECC"}
    _lines(folder / "nodes.jsonl", [fault, {**fault, "node": "n2"}, {"at": AT + 1, "node": "n2", "forget": True}])


def _run(root: Path, site: Site) -> Record:
    paths = RunPaths(root)
    specs = [harness.spec_of(stage, paths) for stage in harness.CHAIN]
    stages = tuple(
        StageRecord(spec.stage, spec.task, _job(paths, spec.stage, stage))
        for spec, stage in zip(specs, harness.CHAIN, strict=True)
    )
    names = tuple(stage.name for stage in stages)
    ids = {name: str(100 + number) for number, name in enumerate(names)} if site.scheduler == "slurm" else {}
    record = Record(
        run=root.name,
        name="tiny",
        created_at=AT,
        user="me",
        host="login",
        site=site,
        recipe="/tiny.yaml",
        overrides=("optim.lr=0.1",),
        stages=stages,
        submits=(SubmitRecord(1, AT, names, ids),),
    )
    _write(paths.record, dataclasses.asdict(record))
    paths.recipe.write_text("version: 1\n")
    _write(paths.resolved, {"version": 1})
    parallel = {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 2}
    _write(paths.plan, {"name": "tiny", "stages": [{"name": name, **parallel} for name in names]})
    _write(paths.environment, {"command": ["hpclm"], "user": "me", "host": "login", "python": "3.11", "git": None})
    for spec in specs:
        stage_paths = paths.stage(spec.stage)
        _write(stage_paths.spec, to_dict(spec))
        stage_paths.job_folder.mkdir()
    return record


def _job(paths: RunPaths, name: str, stage: harness.Stage) -> StageJob:
    return StageJob(
        run=paths.name,
        stage=name,
        submit=1,
        title="tiny",
        stage_dir=str(paths.stage(name).root),
        payload=str(paths.payload),
        device="cpu",
        nodes=1,
        tasks_per_node=2,
        cpus_per_task=1,
        memory_gib=1,
        time_limit_min=5,
        total_time_min=5,
        launch=LaunchSpec(python=("python3",)),
        python=("python3",),
        depends_on=stage.depends_on,
        bad_node_list=str(paths.root.parent / "nodes.jsonl"),
    )


def _attempt(paths: StagePaths, state: str, kind: str, code: int) -> None:
    attempt = paths.attempt(1, 0)
    for rank in range(2):
        report: dict[str, Any] = {
            "rank": rank,
            "node": "n1",
            "pid": 5,
            "started_at": AT,
            "state": state,
            "ended_at": AT + 9,
        }
        more = {
            "kind": kind,
            "exit_code": code,
            "message": "it failed",
            "error_type": "RuntimeError",
            "where": "a.py:1",
        }
        _write(attempt.rank(rank), {**report, **more, "traceback": "Traceback: a.py"})
        attempt.logs.mkdir(exist_ok=True)
        attempt.log(rank).write_text(f"rank {rank}\nstep 1\nRuntimeError: it failed\n")


def _ended(paths: StagePaths, task: str) -> None:
    _attempt(paths, "done", "ok", 0)
    progress = {
        "phase": "training",
        "step": 2,
        "total_steps": 2,
        "loss": 1.0,
        "tokens_per_s": 12.0,
        "seconds_left": 0.0,
    }
    _write(paths.progress, {**progress, "started_at": AT, "updated_at": AT + 9, "epoch": 0.5, "val_loss": 0.25})
    _lines(paths.metrics, [{"kind": "train", "step": step, "loss": 2.0 / step, "time": AT} for step in (1, 2)])
    result: dict[str, Any] = {"task": task, "steps": 1, "loss": 0.5, "val_loss": 0.25, "seconds": 1.0, "world_size": 2}
    if task == "evaluate":
        for rank, shares in enumerate(([0, 2], [1])):
            rows = [
                {"index": i, "taskname": "first", "prompt": f"q{i} =", "prediction": " a", "answer": "a"}
                for i in shares
            ]
            _lines(paths.prediction(rank), rows)
        result |= {"examples": 3, "scores": {"first": {"exact_match": 0.5, "examples": 3}}}
    else:
        shard = {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
        manifest = {"format": "hpclm-checkpoint", "version": 1, "files": {"shard-00000.safetensors": shard}}
        _write(paths.checkpoint(1) / "manifest.json", {**manifest, "tensors": {}, "state": {}})
        (paths.checkpoint(1) / "shard-00000.safetensors").write_bytes(b"weights")
        _write(paths.checkpoints / "model.json", {})
        _write(paths.best, {"checkpoint": "step-00000001", "step": 1, "val_loss": 0.25})
        _write(paths.latest, {"checkpoint": "step-00000001", "step": 1})
    _write(paths.result, result)


def _failed(paths: StagePaths) -> None:
    """Two attempts: after the first the job started the ranks again."""
    _attempt(paths, "failed", "error", 1)
    decision = {
        "action": "restart",
        "kind": "error",
        "reason": "rank 0: it failed",
        "step": 0,
        "rank": 0,
        "bad": {},
        "exclude": [],
        "code": 0,
        "suspect": "n1",
        "at": AT + 9,
    }
    _write(paths.attempt(1, 0).decision, decision)
    second = paths.attempt(1, 1)
    _write(
        second.rank(0),
        {
            "rank": 0,
            "node": "n1",
            "pid": 6,
            "started_at": AT + 10,
            "state": "failed",
            "kind": "memory",
            "message": "out of memory",
            "exit_code": 11,
        },
    )
    second.logs.mkdir()
    second.log(0).write_text("out of memory\n")
    _write(second.decision, {**decision, "action": "stop", "kind": "restarts", "code": 41})
    _write(second.preflight_report("n1"), {"node": "n1", "ok": True, "problems": []})
    events = []
    for restart in (0, 1):
        event = {"at": AT + 10 * restart, "job": "100", "attempt": f"001-{restart:02d}"}
        events += [{**event, "event": "start", "detail": "n1"}, {**event, "event": "end", "detail": "1"}]
    _lines(paths.events, [*events, {"at": AT + 20, "job": "100", "attempt": "001-01", "event": "stop", "detail": "41"}])
    paths.batch_log("100").write_text("srun: error\nslurmstepd: error\n")
    paths.job_exit("100").write_text(f"41 {AT + 20:.0f} -\n")
    paths.spent(1).write_text("20\n")


def _scheduled(paths: RunPaths, record: Record) -> None:
    for stage, state in zip(record.stages, ("failed", "skipped", "skipped"), strict=True):
        job_id = record.submits[0].job_ids[stage.name]
        info = {"job_id": job_id, "state": state, "reason": "x", "started_at": AT, "ended_at": AT + 20, "nodes": "n1"}
        _write(
            paths.stage(stage.name).scheduler,
            {**info, "tag": record.tag(stage.name), "raw_state": "FAILED", "reason_is_final": False},
        )


def _local(paths: RunPaths, record: Record, state: str) -> None:
    stages = {
        one.name: {"state": state, "reason": "", "started_at": AT, "ended_at": AT + 9, "exit_codes": [0, 0]}
        for one in record.stages
    }
    here = {
        "pid": 99,
        "boot_id": boot_id(),
        "start_ticks": 1,
        "host": "login",
        "ended_at": AT + 9,
        "updated_at": AT + 9,
    }
    _write(paths.local(1).state, {**here, "stages": stages})
    _write(paths.local(1).jobs, {"stages": [], "kill_wait_s": 30.0, "grace_s": 15.0})


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def _lines(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
