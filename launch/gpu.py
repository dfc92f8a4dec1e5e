"""Tests and measurements on this machine's GPUs, with nothing from the network: `make gpu`.

    python launch/gpu.py [--wheels DIR] [--out gpu-report] [--rehearse]
    python launch/gpu.py --fill-wheels DIR --python-version 3.12      # on a machine with a network, before

It uses the Python that starts it, with the torch that is there. What else is missing is taken from --wheels and put
into a folder of its own, so that nothing of the machine is changed. The report says what could not be run, and why.
Standard library only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import name → what to install. torch, numpy and transformers are the machine's.
NEEDED = {
    "megatron.core": "megatron-core==0.16.1",
    "submitit": "submitit>=1.5.0,<1.6",
    "pydantic": "pydantic>=2.7,<3",
    "yaml": "pyyaml>=6.0,<7",
    "typer": "typer>=0.15,<1",
    "rich": "rich>=13.7,<16",
    "pynvml": "nvidia-ml-py>=12.560,<14",
    "safetensors": "safetensors>=0.4.5,<1",
    "sentencepiece": "sentencepiece>=0.2,<1",
    "tokenizers": "tokenizers>=0.20,<1",
    "hypothesis": "hypothesis>=6.100,<7",
    "pytest": "pytest>=8.3,<10",
}
# For the comparison with them; left out where they are missing.
PEERS = {
    "accelerate": "accelerate>=1.2,<2",
    "peft": "peft>=0.17,<1",
    "transformers": "transformers>=4.57,<6",
}
# Parts of the tests need one of these each; `--fill-wheels` builds the first, which has no wheel.
OPTIONAL = {
    "deepspeed": "deepspeed>=0.19.8,<0.20",
    "hjson": "hjson>=3.1,<4",
    "bitsandbytes": "bitsandbytes>=0.49,<1",
}
# Not all of tests/: other folders hide the GPU when they are collected, or need what only developers install.
TESTS = ("tests/gpu", "tests/hardware")
MARK = "HPCLM_GPU_REPORT"
_TESTS_SHARE = 0.6
PLATFORMS = tuple(f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_24", "_2_17", "2014"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is missing")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--seconds", type=int, default=580, help="that all of it may take")
    parser.add_argument("--rehearse", action="store_true", help="run everything on the CPU, to try this script")
    parser.add_argument("--fill-wheels", type=Path, metavar="DIR", help="download the wheels and stop")
    parser.add_argument("--python-version", default=platform.python_version().rpartition(".")[0])
    arguments = parser.parse_args()
    if arguments.fill_wheels:
        return fill(arguments.fill_wheels, arguments.python_version)
    return report(arguments.wheels, arguments.out, arguments.seconds, arguments.rehearse)


def fill(folder: Path, version: str) -> int:
    """Wheels for that Python: with what they need, except for those which would bring torch."""
    common = ["-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={version}"]
    common += [f"--platform={name}" for name in PLATFORMS] + ["--dest", str(folder)]
    alone = [NEEDED["megatron.core"]]
    others = [one for one in NEEDED.values() if one not in alone]
    source, *wheels = OPTIONAL.values()
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", source]
    for words in ([*common, *others], [*common, "--no-deps", *alone, *wheels], build):
        environment = {**os.environ, "DS_BUILD_OPS": "0"}  # Python alone; what must be compiled is, where it is used
        done = subprocess.run([sys.executable, *words], check=False, env=environment)
        if done.returncode:
            return done.returncode
    size = sum(one.stat().st_size for one in folder.glob("*.whl"))
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {size / 2**20:.0f} MiB, for Python {version}")
    return 0


def missing(names: dict[str, str]) -> list[str]:
    found = []
    for name in names:
        try:
            there = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # of a parent package
            there = False
        if not there:
            found.append(name)
    return found


def report(wheels: Path | None, out: Path, limit_s: int, rehearse: bool) -> int:
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    site = out.resolve() / "site"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    lacking = missing(NEEDED)
    if lacking:
        print(f"not here: {', '.join(lacking)}", flush=True)
        code = install([NEEDED[name] for name in lacking], wheels, site)
        if code:
            print("give a folder of wheels with --wheels; `python launch/gpu.py --fill-wheels DIR` fills one elsewhere")
            return code
    also = [OPTIONAL[name] for name in missing(OPTIONAL)]
    if wheels is not None:
        also = [one for one in also if any(wheels.glob(f"{re.split('[<>=]', one)[0]}-*.whl"))]
    if also:
        install(also, wheels, site)
    left_out = [f"comparison with {name}: not installed" for name in missing(PEERS)]
    facts = seen(environment)
    if not facts.get("gpus") and not rehearse:
        print(f"torch sees no GPU here: {facts}")
        return 1
    if facts.get("gpus", 0) == 1:
        left_out.append("splits over several GPUs: one is here")
    if rehearse:
        environment["HPCLM_GPU_TESTS"] = "rehearse"
    environment[MARK] = str(os.getpid())
    # so that something is measured where the tests take too long
    tests = tested(environment, out, _TESTS_SHARE * (limit_s - (time.monotonic() - began)))
    end_what_is_left(f"{MARK}={os.getpid()}")
    rest = limit_s - (time.monotonic() - began)
    measured = measurements(environment, out, rest, rehearse)
    whole = {
        "machine": facts,
        "rehearsal": rehearse,
        "tests": tests,
        "measurements": measured,
        "left_out": left_out + tests["skipped"],
        "seconds": round(time.monotonic() - began),
    }
    (out / "report.json").write_text(json.dumps(whole, indent=2) + "\n")
    print(f"\n{len(tests['passed'])} tests passed, {len(tests['failed'])} failed, {len(tests['skipped'])} left out")
    for name in tests["failed"]:
        print(f"FAILED {name}")
    for line in whole["left_out"]:
        print(f"LEFT OUT {line}")
    print(f"{out / 'report.json'}: everything, in {whole['seconds']} s")
    return 1 if tests["failed"] or not tests["passed"] else 0


def install(packages: list[str], wheels: Path | None, site: Path) -> int:
    """Into `site`, without touching what is installed, or hiding it; torch is never among them."""
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(site)]
    chosen = packages if wheels is None else ["--no-index", *map(str, chosen_wheels(packages, wheels))]
    return subprocess.run([*argv, *chosen], check=False).returncode


def chosen_wheels(packages: list[str], wheels: Path) -> list[Path]:
    """Of the folder, those of the packages and of what they need in turn and is not installed."""
    there = {plain(path.name.split("-")[0]): path for path in sorted(wheels.glob("*.whl"))}
    todo, found = [plain(re.split(r"[=<>~! ]", one)[0]) for one in packages], dict[str, Path]()
    while todo:
        name = todo.pop()
        if name in found or name not in there:
            continue
        found[name] = there[name]
        with zipfile.ZipFile(there[name]) as wheel:
            metadata = next(one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
            lines = wheel.read(metadata).decode().splitlines()
        for line in lines:
            if line.startswith("Requires-Dist:") and "extra ==" not in line:
                needed = plain(re.split(r"[^A-Za-z0-9._-]", line.removeprefix("Requires-Dist:").strip())[0])
                if not is_installed(needed):
                    todo.append(needed)
    return list(found.values())


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def seen(environment: dict[str, str]) -> dict[str, object]:
    """What torch says of this machine."""
    code = (
        "import json, platform, torch; n = torch.cuda.device_count(); print(json.dumps({'gpus': n, 'names': "
        "[torch.cuda.get_device_name(i) for i in range(n)], 'torch': torch.__version__, 'cuda': torch.version.cuda, "
        "'python': platform.python_version()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return {"error": (done.stderr.strip().splitlines() or ["torch says nothing"])[-1]}


def tested(environment: dict[str, str], out: Path, limit_s: float) -> dict[str, list[str]]:
    """The tests of a GPU: how many passed, and which failed or were left out, with the reason."""
    results = out / "tests.xml"
    argv = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={results}"]
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    if not missing({"xdist": "pytest-xdist"}):  # most of a test's time is its processes' start
        argv += ["-p", "xdist", "-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadgroup"]
    environment = {**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the machine may have any
    with subprocess.Popen([*argv, *TESTS], cwd=ROOT, env=environment) as running:
        try:
            running.wait(max(1, limit_s))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)  # it then writes what it has
            found["failed"].append(f"the tests took more than {limit_s:.0f} s")
    if not results.exists():
        return found
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            found["failed"].append(name)
        elif skipped is not None:
            found["skipped"].append(f"{name}: {skipped.get('message')}")
        else:
            found["passed"].append(name)
    return found


def end_what_is_left(mark: str) -> None:
    """Kill what the tests started and did not end, runs in the background for one: it would slow what is measured."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if mark.encode() in variables:
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue  # it has ended, or is another user's


def measurements(environment: dict[str, str], out: Path, limit_s: float, rehearse: bool) -> object:
    argv = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--out", str(out), *(["--device", "cpu"] * rehearse)]
    try:
        subprocess.run(argv, env=environment, check=False, timeout=max(1, limit_s))
        return json.loads((out / "measurements.json").read_text())
    except (subprocess.TimeoutExpired, OSError, ValueError) as error:
        return f"not complete: {type(error).__name__}"


if __name__ == "__main__":
    sys.exit(main())
