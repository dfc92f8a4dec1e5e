"""A stage that runs a user's program: rendezvous, environment, signals, progress, and its exit.

Nothing here imports torch: the image may contain anything. The rendezvous uses files in the attempt's folder; rank 0
publishes an address and a free port, which the program may then use as MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from hpclm.core import heartbeat
from hpclm.core.files import read_object, write_json, write_text
from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.core.records import from_dict
from hpclm.core.sealed import write_sealed
from hpclm.core.spec import ProgramStageSpec
from hpclm.worker.addresses import addresses, boot_id
from hpclm.worker.peers import wait_until_finished
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.rank_launch import RankLaunch
from hpclm.worker.report import ProgramError, Progress, ProgressValues, RendezvousError, StoppedError
from hpclm.worker.signals import StopFlag

_WAIT_S = 300.0
_POLL_S = 0.1
_CONNECT_S = 3.0

Number = TypeVar("Number", int, float)


def run(launch: RankLaunch) -> None:
    """Run this rank's share. Returns when the stage is complete; raises what `report` knows to classify."""
    began = time.time()
    spec = from_dict(ProgramStageSpec, launch.spec)
    stage, attempt, facts, stop = launch.stage, launch.attempt, launch.facts, launch.stop
    progress = Progress(stage.progress, stage.metrics, active=True)
    if facts.rank == 0:
        progress.update(phase="starting")
        for name, text in spec.program.files.items():
            write_text(stage.root / name, text)
    address, port = _rendezvous(attempt, facts)
    values = _values(spec, stage, facts, address, port)
    starts = spec.program.launcher == "rank" or facts.local_rank == 0
    if starts:
        _run_child(spec, stage, attempt, values, progress, stop)
    # all wait for rank 0, and it for all: the scheduler may end a job whose first task exits early
    if facts.rank == 0:
        wait_until_finished(attempt, range(1, facts.world_size))
        attempt.finished(0).touch()
    else:
        attempt.finished(facts.rank).touch()
        wait_until_finished(attempt, [0])
    if facts.rank == 0:
        outputs = _outputs(spec, stage)
        # another rank may have printed the steps and losses
        progress.update(**{**(read_object(stage.progress) or {}), "phase": "done"}, force=True)
        result = {"task": "program", "world_size": facts.world_size, "outputs": outputs, "seconds": time.time() - began}
        write_sealed(stage.result, result | _last_metrics(progress))


def _rendezvous(attempt: AttemptPaths, facts: RankFacts) -> tuple[str, int]:
    """Where rank 0 is, as seen from here, and a port that was free there a moment ago."""
    deadline = time.monotonic() + _WAIT_S
    if facts.rank == 0:
        with socket.socket() as probe, socket.socket() as reserved:
            probe.bind(("0.0.0.0", 0))
            probe.listen(1024)
            reserved.bind(("0.0.0.0", 0))
            port = reserved.getsockname()[1]
            published = {
                "probe": probe.getsockname()[1],
                "port": port,
                "addresses": list(addresses()),
                "boot_id": boot_id(),
            }
            write_json(attempt.rendezvous, published)
            others = [attempt.arrived(rank) for rank in range(1, facts.world_size)]
            _wait_for_files(others, attempt, deadline, "arrive")
        one_machine = all(file.read_text() == boot_id() for file in others)
        return "127.0.0.1" if one_machine else next(iter(addresses()), "127.0.0.1"), port
    while time.monotonic() < deadline:
        found = read_object(attempt.rendezvous) if attempt.rendezvous in attempt.root.iterdir() else None
        if found is not None:
            address = _reachable(found)
            if address is not None:
                attempt.arrived(facts.rank).write_text(boot_id())
                return address, int(found["port"])
        time.sleep(_POLL_S)
    raise RendezvousError(f"rank 0 could not be reached within {_WAIT_S:.0f} s; see {attempt.rendezvous}")


def _reachable(published: dict[str, Any]) -> str | None:
    for address in ["127.0.0.1"] if published["boot_id"] == boot_id() else published["addresses"]:
        with contextlib.suppress(OSError):
            socket.create_connection((address, published["probe"]), timeout=_CONNECT_S).close()
            return str(address)
    return None


def _values(
    spec: ProgramStageSpec, stage: StagePaths, facts: RankFacts, address: str, port: int
) -> dict[str, str | int]:
    """The values of the placeholders."""
    split = spec.parallel
    return {
        "rank": facts.rank,
        "world_size": facts.world_size,
        "local_rank": facts.local_rank,
        "local_world_size": split.devices_per_node,
        "node_rank": facts.node_rank,
        "num_nodes": split.nodes,
        "devices_per_node": split.devices_per_node,
        "master_addr": address,
        "master_port": port,
        "tensor": split.tensor,
        "pipeline": split.pipeline,
        "context": split.context,
        "data": split.data,
        "run": spec.run,
        "run_dir": str(stage.run.root),
        "stage": spec.stage,
        "stage_dir": spec.stage_dir,
        "checkpoints": str(stage.checkpoints),
        "restart": facts.restart,
    }


def command(spec: ProgramStageSpec, values: dict[str, str | int]) -> list[str]:
    """argv of the child: the user's with its placeholders filled, or torchrun's in front of it.
    Never run by a shell."""
    argv = [argument.format_map(values) for argument in spec.program.argv]
    if spec.program.launcher == "rank":
        return argv
    flags = {
        "nnodes": values["num_nodes"],
        "nproc-per-node": values["devices_per_node"],
        "node-rank": values["node_rank"],
        "master-addr": values["master_addr"],
        "master-port": values["master_port"],
        "max-restarts": 0,
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", *(f"--{name}={value}" for name, value in flags.items())]
    # torchrun starts a Python script; its own interpreter replaces a leading `python`
    interpreter = Path(argv[0]).name.startswith("python")
    return [*torchrun, *(argv[1:] if interpreter else ["--no-python", *argv])]


def _environment(spec: ProgramStageSpec, values: dict[str, str | int]) -> dict[str, str]:
    names = ("master_addr", "master_port", "rank", "world_size", "local_rank", "local_world_size", "node_rank")
    own = {name.upper(): str(values[name]) for name in names}
    if spec.program.launcher == "torchrun":
        own = {}
    return {**os.environ, **own, **spec.program.environment}


def _run_child(
    spec: ProgramStageSpec,
    stage: StagePaths,
    attempt: AttemptPaths,
    values: dict[str, str | int],
    progress: Progress,
    stop: StopFlag,
) -> None:
    stage.checkpoints.mkdir(parents=True, exist_ok=True)
    argv = command(spec, values)
    try:
        child = subprocess.Popen(
            argv,
            cwd=spec.program.workdir or spec.stage_dir,
            env=_environment(spec, values),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramError(f"{argv[0]} cannot be started: {error.strerror}", retry=False) from None
    assert child.stdout is not None
    reader = _Reader(child.stdout, spec.program.progress, progress, attempt.reporter)
    reader.start()
    try:
        stopped = _watch(child, stop)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    reader.join(5.0)
    code = child.wait()
    if stopped:
        # Well-behaved programs save and exit with 0 when they are stopped; that does not mean that they were finished.
        raise StoppedError(f"stop requested; {Path(argv[0]).name} was stopped too and ended with {_how(code)}")
    if code == 0:
        return
    retry = code < 0 or code in spec.program.retry_exit_codes
    raise ProgramError(f"{Path(argv[0]).name} ended with {_how(code)}; its last line: {reader.last}", retry=retry)


def _watch(child: subprocess.Popen[str], stop: StopFlag) -> bool:
    """Wait for the child; a signal to this rank is passed on once, to the child alone.
    Returns whether one was passed on."""
    stopped = False
    while child.poll() is None:
        if stop.requested and not stopped:
            stopped = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, stop.number or signal.SIGTERM)
        time.sleep(_POLL_S)
    return stopped


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class _Reader(threading.Thread):
    """Forwards the child's output and reads steps and losses from it. Every line counts as a heartbeat."""

    def __init__(self, stream: IO[str], pattern: str | None, progress: Progress, claim: Path) -> None:
        super().__init__(daemon=True)
        self.stream, self.progress, self.claim = stream, progress, claim
        self.reports: bool | None = None
        self.step = -1
        self.pattern = re.compile(pattern) if pattern else None
        self.last = "(none)"

    def run(self) -> None:
        for line in self.stream:
            sys.stdout.write(line)
            sys.stdout.flush()
            heartbeat.beat()
            if line.strip():
                self.last = line.strip()[:500]
            match = self.pattern.search(line) if self.pattern else None
            if match and self._reports():
                self._take(match.groupdict())
        if self.reports:
            self.progress.update(force=True)

    def _reports(self) -> bool:
        """If several ranks print the same, the first one is used."""
        if self.reports is None:
            try:
                os.close(os.open(self.claim, os.O_CREAT | os.O_EXCL))
                self.reports = True
            except OSError:
                self.reports = False
        return self.reports

    def _take(self, found: dict[str, str | None]) -> None:
        step, loss = _number(int, found.get("step")), _number(float, found.get("loss"))
        if step is not None and step <= self.step:
            return  # another rank of the node, that prints the same
        values: ProgressValues = {"phase": "training"}
        if step is not None:
            self.step = values["step"] = step
        if loss is not None:
            values["loss"] = loss
        if step is not None and loss is not None:
            self.progress.metric("train", step, {"loss": loss}, silent=True)
        if (total_steps := _number(int, found.get("total_steps"))) is not None:
            values["total_steps"] = total_steps
        if (val_loss := _number(float, found.get("val_loss"))) is not None:
            values["val_loss"] = val_loss
        self.progress.update(**values)


def _number(kind: Callable[[str], Number], text: str | None) -> Number | None:
    try:
        return None if text is None else kind(text)
    except ValueError:
        return None


def _wait_for_files(paths: list[Path], attempt: AttemptPaths, deadline: float, what: str) -> None:
    while missing := [path for path in paths if not path.exists()]:
        if time.monotonic() > deadline:
            raise RendezvousError(f"{missing[0].name} did not {what} within {_WAIT_S:.0f} s")
        list(attempt.root.iterdir())  # makes an NFS client ask the server again
        time.sleep(_POLL_S)


def _outputs(spec: ProgramStageSpec, stage: StagePaths) -> list[str]:
    """Files of the stage's folder that match the recipe's `outputs`. Raises ProgramError for a pattern that
    matches nothing."""
    found: list[str] = []
    for pattern in spec.program.outputs:
        matches = sorted(str(path.relative_to(stage.root)) for path in stage.root.glob(pattern) if path.is_file())
        if not matches:
            raise ProgramError(f"the program succeeded but wrote no file that matches {pattern!r}", retry=False)
        found += matches
    return found


def _last_metrics(progress: Progress) -> dict[str, object]:
    written = read_object(progress.progress_path) or {}
    return {"steps": written.get("step"), "loss": written.get("loss"), "val_loss": written.get("val_loss")}
