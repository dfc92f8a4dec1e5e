"""Forks ranks from a process that has loaded torch and megatron-core once: `python -m tests.support.rank_server`.

Loading both takes seconds of a core in each rank, most of a short test. A forked rank runs the same
`hpclm.worker.entry` with the same arguments and environment as a started one; the tests on a cluster and the demo's
start theirs.

With the argument `gpu` its children may use GPUs, and it does not touch them itself: CUDA does not outlive a fork. It
has loaded what engine hf needs, too; with `hf` that alone.

A request is a line of JSON on standard input, the answer one on standard output: {"start": [argument, …], "function":
"module:name", "env": {…}, "log": path} gives {"pid": …}; {"poll": pid} gives {"code": null or the exit code, negative
for a signal}.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from hpclm.core.light_imports import without
from tests.support.processes import ROOT, environment

RANK = "hpclm.worker.entry:main"
Kind = Literal["megatron", "gpu", "hf"]
_OF_HF = (
    "hpclm.engines.hf.ranks.stage_runner",
    "hpclm.engines.hf.ranks.fine_tuning",
    "hpclm.engines.hf.ranks.evaluation",
    "hpclm.engines.hf.ranks.hf_trace",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
    "peft",
    "deepspeed",
    "torch.distributed.tensor._utils",
)


class ForkedRank:
    """A rank, with what the tests use of `subprocess.Popen`.

    Args:
        function: another one than a rank's to call in such a process, `module:name`; it takes `arguments`.
    """

    def __init__(
        self, arguments: list[str], env: dict[str, str], log: Path, *, kind: Kind = "megatron", function: str = RANK
    ) -> None:
        self.server = _server(kind)
        self.pid: int = self.server.ask({"start": arguments, "function": function, "env": env, "log": str(log)})["pid"]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask({"poll": self.pid})["code"]
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    def __init__(self, kind: Kind) -> None:
        argv = [sys.executable, "-m", "tests.support.rank_server", kind]
        # asked through NVML, torch says whether there is a GPU without starting CUDA
        where = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if kind == "gpu" else {"CUDA_VISIBLE_DEVICES": ""}
        env = environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", **where)
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self.process.kill)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the server of ranks has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@cache
def _server(kind: Kind) -> _Server:
    return _Server(kind)


def _rank(function: str, arguments: list[str], env: dict[str, str], log: str) -> None:
    """The child: a rank with its own environment and log. It does not return."""
    os.environ.clear()
    os.environ.update(env)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for mine, standard in ((null, 0), (target, 1), (target, 2)):
        os.dup2(mine, standard)
    code = 1
    try:
        module, _, name = function.partition(":")
        _start_again_if_forks_cannot(module, name, arguments)
        getattr(importlib.import_module(module), name)(*arguments)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _start_again_if_forks_cannot(module: str, name: str, arguments: list[str]) -> None:
    """A library may have started CUDA while it was loaded; then the process begins anew, without what was loaded."""
    import torch

    if torch.cuda._is_in_bad_fork():
        code = f"import sys, {module} as module; module.{name}(*sys.argv[1:])"
        os.execv(sys.executable, [sys.executable, "-c", code, *arguments])


def _poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _import(modules: Sequence[str]) -> None:
    """What is installed of them."""
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _load(kind: Kind) -> None:
    if kind == "hf":
        os.environ["DS_ACCELERATOR"] = "cpu"
        _import(_OF_HF)
        return
    from hpclm.engines.megatron.ranks import cpu_standins, stage_runner

    if kind == "megatron":
        # as a rank does: the stand-ins before megatron-core's modules
        cpu_standins.install()
    for module in ("groups", "rank_context", "tasks"):
        importlib.import_module(f"{stage_runner.__package__}.{module}")
    if kind == "gpu":
        # not deepspeed, which looks for a GPU, and not bitsandbytes, which starts CUDA: peft loads it where it is
        with without("bitsandbytes"):
            _import([name for name in _OF_HF if name != "deepspeed"])


def serve(kind: Kind) -> None:
    _load(kind)
    # a child that looks through what was loaded for garbage copies most of it: a fifth of a second of a core each time
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = {"code": _poll(request["poll"])}
        else:
            pid = os.fork()
            if pid == 0:
                _rank(request["function"], request["start"], request["env"], request["log"])
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(cast(Kind, sys.argv[1]))
