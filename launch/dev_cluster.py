"""A real Slurm on one machine: a controller and some slurmd with fake GPUs, as any user, in about a second.

    python launch/dev_cluster.py            # starts it, prints how to use it, stops on Ctrl-C

The cluster tests use the same `Cluster`. It needs `slurmctld` and `slurmd` with support for several slurmd on a host
(Debian's and Ubuntu's slurm-wlm have it), touches nothing outside its own temporary folder, and needs no munge, no
root and no entry in /etc/hosts. Nodes claim 16 CPUs and 8 GPUs each, whatever the machine has. Not for real work: it
has no authentication (auth/none).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NODES, GPUS_PER_NODE, CPUS_PER_NODE, MEMORY_MIB = 4, 8, 16, 16_000
_START_S = 30.0
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")


class ClusterError(RuntimeError):
    """The cluster cannot be started here; the message says what is missing."""


class Cluster:
    """`with Cluster() as cluster:` commands with `cluster.environment` (SLURM_CONF) use it, and only it."""

    def __init__(
        self, nodes: int = NODES, *, kill_wait_s: int = 3, min_job_age_s: int = 300, extra: tuple[str, ...] = ()
    ) -> None:
        """`extra`: further lines of slurm.conf."""
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
        missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
        if missing:
            raise ClusterError(f"{', '.join(missing)} not found; on Debian or Ubuntu: apt-get install slurm-wlm")
        self._programs = {name: str(shutil.which(name, path=path)) for name in _PROGRAMS}
        self.nodes = [f"node{index}" for index in range(nodes)]
        self._extra = extra
        self._kill_wait_s, self._min_job_age_s = kill_wait_s, min_job_age_s
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.root = Path(tempfile.mkdtemp(prefix="hpclm-slurm-"))
        self.conf = self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return once every node is idle. Raises ClusterError with the end of the daemons' logs."""
        ports = _free_ports(len(self.nodes) + 1)
        self.conf.write_text(self._conf_text(ports))
        (self.root / "gres.conf").write_text(self._gres_text())
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.root / "state").mkdir()
        self.start_controller()
        for name in self.nodes:
            (self.root / f"spool-{name}").mkdir()
            self._start_node(name)
        self.wait_until_idle()

    def stop(self) -> None:
        """Cancel running jobs, stop the daemons and remaining steps, remove the folder."""
        if self._processes:
            self._cancel_everything()
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        for pid in self._stray_processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def command(self, *argv: str, check: bool = True) -> str:
        """Output of a Slurm client command run against this cluster."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            [self._programs.get(argv[0], argv[0]), *argv[1:]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def take_down(self, name: str, reason: str = "hpclm test") -> None:
        """Set a node down, as a failure would."""
        self.command("scontrol", "update", f"nodename={name}", "state=down", f"reason={reason}")

    def bring_back(self, name: str) -> None:
        """Resume a node, and wait until all are idle; it may already have resumed by itself."""
        self.command("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self.wait_until_idle()

    def start_controller(self) -> None:
        """Start the controller, which takes up the jobs of the one before it."""
        self._controller = self._spawn("slurmctld", [self._programs["slurmctld"], "-D", "-f", str(self.conf)])

    def stop_controller(self) -> None:
        """Stop the controller as an update would: jobs run on, and no command is answered."""
        self._controller.terminate()
        self._controller.wait()
        self._processes.remove(self._controller)

    def kill_node(self, name: str) -> None:
        """End a node's daemon and everything it runs at once, as when its power fails;
        the controller notices it later."""
        self._daemons[name].kill()
        self._daemons[name].wait()
        for pid in self._processes_on(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def revive_node(self, name: str) -> None:
        """Start a killed node again, and wait until all are idle."""
        self._processes.remove(self._daemons[name])
        self._start_node(name)
        self.bring_back(name)

    def _start_node(self, name: str) -> None:
        self._daemons[name] = self._spawn(name, [self._programs["slurmd"], "-D", "-N", name, "-f", str(self.conf)])

    def _processes_on(self, name: str) -> list[int]:
        """The processes of a node: those that name it in their environment, and the daemons that started those."""
        needles = (f"SLURM_CONF={self.conf}".encode(), f"SLURMD_NODENAME={name}".encode())
        found = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                if all(needle in environment for needle in needles):
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    found.add(int(entry.name))
                    if b"slurmstepd" in Path(f"/proc/{parent}/comm").read_bytes():
                        found.add(parent)
        return sorted(found)

    def _spawn(self, name: str, argv: list[str]) -> subprocess.Popen[bytes]:
        log = (self.root / f"{name}.log").open("wb")
        environment = {**os.environ, **self.environment}
        with log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._processes.append(process)
        return process

    def wait_until_idle(self) -> None:
        """Until every node is up and no job is on it, nor being cleaned up after. Raises ClusterError."""
        deadline = time.monotonic() + _START_S
        seen = ""
        while time.monotonic() < deadline:
            dead = [process for process in self._processes if process.poll() is not None]
            if dead:
                break
            seen = self.command("sinfo", "--noheader", "--Node", "-o", "%N %T", check=False)
            states = dict(line.split() for line in seen.splitlines())
            if set(states) == set(self.nodes) and set(states.values()) == {"idle"}:
                return
            time.sleep(0.05)
        raise ClusterError(f"Slurm did not come up within {_START_S:.0f} s; nodes: {seen.split()}\n{self.last_words()}")

    def last_words(self) -> str:
        """The ends of the daemons' logs."""
        tails = []
        for log in sorted(self.root.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-8:]
            tails.append(f"-- {log.name}\n" + "\n".join(lines))
        return "\n".join(tails)

    def _cancel_everything(self) -> None:
        self.command("scancel", "--user", _user(), check=False)
        deadline = time.monotonic() + self._kill_wait_s + 5
        while time.monotonic() < deadline and self.command("squeue", "--noheader", check=False).strip():
            time.sleep(0.1)

    def _stray_processes(self) -> list[int]:
        """Processes whose environment names this cluster: steps that outlived their slurmd."""
        needle = f"SLURM_CONF={self.conf}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                if needle in (entry / "environ").read_bytes() and b"slurm" in (entry / "comm").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def _gres_text(self) -> str:
        # Slurm sets CUDA_VISIBLE_DEVICES from the number of a device file; terminals are devices every Linux has.
        real = all(Path(f"/dev/tty{index}").exists() for index in range(GPUS_PER_NODE))
        if not real:
            for index in range(GPUS_PER_NODE):
                (self.root / f"gpu{index}").touch()
        files = f"/dev/tty[0-{GPUS_PER_NODE - 1}]" if real else f"{self.root}/gpu[0-{GPUS_PER_NODE - 1}]"
        lines = ["AutoDetect=off", *(f"NodeName={name} Name=gpu File={files}" for name in self.nodes)]
        return "\n".join(lines) + "\n"

    def _conf_text(self, ports: list[int]) -> str:
        user = _user()
        lines = [
            "ClusterName=hpclm-dev",
            f"SlurmctldHost={socket.gethostname()}(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/none",
            "CredType=cred/none",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "SlurmdParameters=config_overrides",
            "GresTypes=gpu",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/none",
            "JobCompType=jobcomp/none",
            "ReturnToService=2",
            f"KillWait={self._kill_wait_s}",
            f"MinJobAge={self._min_job_age_s}",
            "OverTimeLimit=0",
            "InactiveLimit=0",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0",
            "SlurmctldTimeout=60",
            "SlurmdTimeout=15",
            f"StateSaveLocation={self.root}/state",
            f"SlurmdSpoolDir={self.root}/spool-%n",
            f"SlurmctldPidFile={self.root}/slurmctld.pid",
            f"SlurmdPidFile={self.root}/slurmd-%n.pid",
            "SlurmctldDebug=info",
            "SlurmdDebug=info",
        ]
        for name, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(
                f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
                f"CPUs={CPUS_PER_NODE} RealMemory={MEMORY_MIB} Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN"
            )
        lines += self._extra
        everywhere = f"Nodes={','.join(self.nodes)} State=UP"
        lines += [
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            f"PartitionName=main {everywhere} Default=YES MaxTime=24:00:00 PriorityTier=1 PreemptMode=OFF",
            # Partitions for tests: a time limit of one minute; preemption at once, or with time to save.
            f"PartitionName=short {everywhere} MaxTime=1 PriorityTier=1 PreemptMode=OFF",
            f"PartitionName=low {everywhere} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
            f"PartitionName=grace {everywhere} PriorityTier=1 PreemptMode=REQUEUE GraceTime=30",
            f"PartitionName=urgent {everywhere} PriorityTier=10 PreemptMode=OFF",
        ]
        return "\n".join(lines) + "\n"


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _die_with_parent() -> None:
    """Ask the kernel to end this daemon when its parent process dies."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description="Boot a real Slurm on this machine until Ctrl-C.")
    parser.add_argument("--nodes", type=int, default=NODES)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with Cluster(arguments.nodes) as cluster:
            print(cluster.command("sinfo", "--noheader", "-o", "%P %D nodes, each %c CPUs, %m MiB, %G"), end="")
            print(f"\nIn another shell:\n    export SLURM_CONF={cluster.conf}")
            print(
                "    hpclm submit recipes/demo.yaml --site slurm --nodes 2 --wait\n\nCtrl-C here stops it.", flush=True
            )
            signal.pause()
    except KeyboardInterrupt:
        pass
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
