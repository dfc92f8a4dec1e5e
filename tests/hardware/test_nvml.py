"""What the driver says, through the real nvidia-ml-py: healthy machines, faulty ones, and unknown facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.nodes.gpu_checks import Need, examine, visible
from hpclm.nodes.nvml import Probe, probe
from tests.support.fake_nvml import call, machine, probed


def errors(found: Probe, need: Need, chosen: str | None = None) -> list[tuple[str, str | None]]:
    return [(one.check, one.at_fault) for one in examine(found, need, chosen) if one.severity == "error"]


@pytest.mark.parametrize(
    ("what", "count", "capability", "memory_mib", "nvlinks"),
    [("a100", 8, (8, 0), 81920, 12), ("h100", 8, (9, 0), 81920, 18), ("v100,x4", 4, (7, 0), 32768, 6)],
)
def test_a_healthy_machine_is_seen_as_it_is(
    what: str, count: int, capability: tuple[int, int], memory_mib: int, nvlinks: int
) -> None:
    found = probed(what)
    assert (found.state, found.driver, found.cuda, len(found.gpus)) == ("ok", "550.54.15", "12.4", count)
    for gpu in found.gpus:
        assert (gpu.capability, gpu.memory_total_mib, gpu.nvlinks) == (capability, memory_mib, nvlinks)
        assert (gpu.ecc_uncorrected, gpu.processes, gpu.trouble) == (0, (), None)
    assert errors(found, Need(devices=count, precision="fp16", memory_mib=memory_mib, cuda="12.1")) == []


@pytest.mark.parametrize(
    ("what", "need", "expected"),
    [
        ("v100,ecc", Need(devices=8), [("ecc", "node")]),
        ("a100,ecc", Need(devices=8), []),  # it has put spare rows in the place of the damaged ones
        ("h100,fabric", Need(devices=8), [("fabric", "node")]),
        ("a100,pending", Need(devices=8), [("row remap", "node")]),
        ("a100,remap", Need(devices=8), [("row remap", "node")]),
        ("a100,lost", Need(devices=8), [("gpu", "node")]),
        ("a100,x7", Need(devices=8), [("gpu count", "node")]),
        ("a100,busy", Need(devices=8, memory_mib=60_000), [("gpu memory", "node")]),
        ("a100,busy", Need(devices=8, memory_mib=1000), []),
        ("a100,x1", Need(devices=1, memory_mib=90_000), [("gpu memory", "run")]),
        ("v100,x4", Need(devices=4, precision="bf16"), [("precision", "run")]),
        ("a100,x1", Need(devices=1, precision="fp8"), [("precision", "run")]),
        ("h100,x1", Need(devices=1, precision="fp8"), []),
        ("a100,x1,old-driver", Need(devices=1, cuda="12.1"), [("driver", "node")]),
        ("a100,x1,old-driver", Need(devices=1, cuda="12.1", compat=True), []),
        ("no-driver", Need(devices=8), [("gpu", "node")]),
        ("mismatch", Need(devices=8), [("gpu", "node")]),
    ],
)
def test_each_fault_is_found_and_laid_to_the_node_or_to_the_run(
    what: str, need: Need, expected: list[tuple[str, str | None]]
) -> None:
    assert errors(probed(what), need) == expected


def test_a_held_gpu_names_who_holds_it() -> None:
    (held,) = examine(probed("a100,busy"), Need(devices=8, memory_mib=60_000))
    assert held.message == "GPU 1 has 1.0 of 80.0 GiB free, a rank needs 58.6; used by process 4711 80896 MiB"
    (shared,) = examine(probed("a100,busy"), Need(devices=8, memory_mib=1000))
    assert (shared.severity, shared.check) == ("warning", "processes")


def test_what_a_driver_does_not_say_is_unknown_and_neither_zero_nor_well() -> None:
    (gpu,) = probed("a100,x1,silent").gpus
    unknown = (gpu.memory_free_mib, gpu.capability, gpu.nvlinks, gpu.ecc_uncorrected, gpu.remap_failed, gpu.processes)
    assert unknown == (None,) * 6
    (finding,) = examine(Probe("ok", gpus=(gpu,)), Need(devices=1, precision="bf16", memory_mib=10**6))
    assert (finding.severity, finding.check) == ("warning", "precision")


def test_a_library_without_the_newer_functions_answers_the_rest() -> None:
    found = probed("a100,x2,ecc", "-DOLD_LIBRARY")
    assert [(gpu.remap_failed, gpu.nvlinks, gpu.ecc_uncorrected) for gpu in found.gpus] == [
        (None, None, 0),
        (None, None, 3),
    ]


def test_a_lost_gpu_does_not_hide_the_others() -> None:
    found = probed("a100,lost")
    assert [gpu.index for gpu in found.gpus if gpu.trouble] == [1]
    assert sum(gpu.memory_total_mib == 81920 for gpu in found.gpus) == 7


def test_without_a_driver_or_the_bindings_the_state_says_so() -> None:
    assert probe().state in ("no-library", "ok", "no-driver")
    code = "import sys; sys.modules['pynvml'] = None; from hpclm.nodes.nvml import probe; print(probe().state)"
    assert call(machine("a100"), "-c", code).stdout.strip() == "no-bindings"
    missing = list(examine(Probe("no-bindings", "not installed"), Need(devices=4), None, 3))
    assert [(one.severity, one.check) for one in missing] == [("error", "gpu count"), ("warning", "gpu")]
    # The device is here and the library is not: the image is entered without the driver, on every node.
    (inside,) = examine(Probe("no-library", "no library"), Need(devices=4), None, 4)
    assert inside.at_fault == "run"


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [(None, [0, 1, 2, 3]), ("2,0", [2, 0]), ("GPU-0000-3", [3]), ("0,9,1", [0]), ("", []), ("NoDevFiles", [])],
)
def test_only_the_gpus_that_the_job_was_given_count(chosen: str | None, seen: list[int]) -> None:
    found = probed("a100,x4")
    assert [gpu.index for gpu in visible(found.gpus, chosen)] == seen


def test_slices_of_a_gpu_count_as_devices() -> None:
    found = probed("a100,x1")
    assert list(examine(found, Need(devices=2), "MIG-aaaa,MIG-bbbb")) == []
    (missing,) = examine(found, Need(devices=3), "MIG-aaaa,MIG-bbbb")
    assert missing.message == "3 GPUs are needed, 2 found"


def test_a_slice_is_as_large_as_it_is() -> None:
    found = probed("a100,x1,mig")
    assert [(one.uuid, one.memory_total_mib) for one in found.gpus[0].slices] == [
        ("MIG-0000-0", 10 << 10),
        ("MIG-0000-1", 40 << 10),
    ]
    both = "MIG-0000-0,MIG-0000-1"
    assert errors(found, Need(devices=2, memory_mib=8 << 10), both) == []
    assert errors(found, Need(devices=2, memory_mib=20 << 10), both) == [("gpu memory", "run")]
    assert errors(found, Need(devices=1, memory_mib=20 << 10), "MIG-0000-1") == []


def test_a_neighbours_sick_gpu_is_not_this_jobs() -> None:
    assert [one for one in examine(probed("a100,ecc"), Need(devices=1), "0") if one.severity == "error"] == []


def test_the_facts_of_a_node_are_json(tmp_path: Path) -> None:
    done = call(machine("h100,x2"), "-m", "hpclm.nodes.node_facts", str(tmp_path), f"{tmp_path}/out")
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").glob("*.json")
    facts = json.loads(written.read_text())
    assert facts["gpu"]["driver"] == "550.54.15"
    assert facts["folder"] | {"free_gib": 0, "skew_s": 0} == {
        "path": str(tmp_path), "visible": True, "writable": True, "trouble": None, "locks": True, "free_gib": 0,
        "skew_s": 0,
    }  # fmt: skip
    assert abs(facts["folder"]["skew_s"]) < 1
