"""A rank reads its modules from one file of the payload, and nothing else changes for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.core.bundled_modules import BUNDLE, bundle, import_from_bundle
from hpclm.core.payload import stage_payload
from tests.support.processes import python

# What a rank does first (hpclm/worker/__main__.py), then its engine's imports, then what it opened of the payload.
RANK = """
import json, os, sys
from pathlib import Path
payload, opened = os.environ["PYTHONPATH"], []
sys.addaudithook(lambda name, given: opened.append(str(given[0])) if name == "open" else None)
sys.dont_write_bytecode = True
from hpclm.core.bundled_modules import import_from_bundle
assert import_from_bundle(Path(payload))
from hpclm.worker import entry
from hpclm.core.registry import load_object
import hpclm.nodes.preflight, hpclm.engines.command.run
try:
    load_object("hpclm.core.records:from_dict")(entry.RankStart, 3)
except Exception:
    import traceback
    told = traceback.format_exc()
import concurrent.futures, multiprocessing
with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    child = pool.submit(load_object, "hpclm.core.records:from_dict").result().__module__
loaded = [one for name, one in sys.modules.items() if name.partition(".")[0] == "hpclm"]
print(json.dumps({
    "opened": sorted(path for path in opened if path.startswith(payload)),
    "told": told, "child": child,
    "modules": {one.__name__: [one.__file__, type(one.__loader__).__name__] for one in loaded},
}))
"""


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "payload"
    stage_payload(folder)
    return folder


def test_a_rank_opens_one_file_for_all_modules(payload: Path) -> None:
    # -S: no other hpclm is installed, as in an image
    done = python("-S", "-c", RANK, env={"PYTHONPATH": str(payload)}, cwd=payload.parent)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["modules"]) > 40
    before = {"hpclm", "hpclm.core", "hpclm.core.bundled_modules"}
    assert {name for name, (_, loader) in said["modules"].items() if loader != "_Loader"} == before
    # tracebacks and data files beside modules: as if each had been read by itself
    for name, (file, _) in said["modules"].items():
        inner = name.replace(".", "/")
        assert file in (f"{payload}/{inner}.py", f"{payload}/{inner}/__init__.py")
        assert Path(file).is_file()
    assert f'File "{payload}/hpclm/core/records.py", line' in said["told"]
    assert "raise" in said["told"]  # the line of the source
    assert said["child"] == "hpclm.core.records"
    opened = [path for path in said["opened"] if not path.endswith("records.py")]  # which the traceback shows
    assert len(opened) <= 7, opened  # three modules and their bytecode before there is a bundle to read
    assert f"{payload}/{BUNDLE}" in opened


def test_what_is_in_no_bundle_is_found_where_it_is(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    (payload / "plug").mkdir(parents=True)
    latin = '# coding: latin-1\nname = "ü"\n'.encode("latin-1")
    (payload / BUNDLE).write_bytes(bundle({"plug/__init__.py": b"import plug.beside\n", "plug/old.py": latin}))
    (payload / "plug" / "beside.py").write_text("from plug.old import name\n")
    (payload / "plug" / "words.txt").write_text("data")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from hpclm.core.bundled_modules import import_from_bundle
assert import_from_bundle(Path({str(payload)!r}))
import importlib.resources, plug.beside
print(plug.beside.name == chr(252), importlib.resources.files("plug").joinpath("words.txt").read_text())
import plug.absent
"""
    done = python("-c", code)
    assert done.stdout == "True data\n", done.stderr
    assert "No module named 'plug.absent'" in done.stderr


def test_without_a_bundle_nothing_changes(tmp_path: Path) -> None:
    assert not import_from_bundle(tmp_path)
