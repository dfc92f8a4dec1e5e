"""What a type of GPU can do, and which driver an image needs."""

from __future__ import annotations

import pytest

from hpclm.core.gpu_types import driver_problem, gpu_type, precision_problem
from hpclm.nodes.diagnosis import precision_words
from hpclm.nodes.gpu_checks import odd_ones


@pytest.mark.parametrize(
    ("said", "name", "capability", "memory_gib"),
    [
        ("a100", "a100", (8, 0), (40, 80)),
        ("nvidia_a100-sxm4-80gb", "a100", (8, 0), (80,)),
        ("a100_1g.5gb", "a100", (8, 0), (5,)),
        ("Tesla V100-SXM2-32GB", "v100", (7, 0), (32,)),
        ("NVIDIA H100 80GB HBM3", "h100", (9, 0), (80,)),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx2080ti", (7, 5), (11,)),
        ("rtx_4090", "rtx4090", (8, 9), (24,)),
        ("l40s", "l40s", (8, 9), (48,)),
        ("b200", "b200", (10, 0), (192,)),
    ],
)
def test_a_type_is_known_by_the_names_that_sites_and_drivers_give_it(
    said: str, name: str, capability: tuple[int, int], memory_gib: tuple[int, ...]
) -> None:
    found = gpu_type(said)
    assert found is not None
    assert (found.name, found.capability, found.memory_gib) == (name, capability, memory_gib)


@pytest.mark.parametrize("said", ["", "gpu", "rtx6000", "mi300x", "a1000", "va100x9"])
def test_what_is_not_known_is_not_guessed(said: str) -> None:
    assert gpu_type(said) is None


@pytest.mark.parametrize(
    ("precision", "capability", "fits"),
    [
        ("bf16", (8, 0), True), ("bf16", (7, 5), False), ("bf16", (10, 0), True),
        ("tf32", (8, 0), True), ("tf32", (7, 0), False),
        ("fp8", (8, 9), True), ("fp8", (8, 6), False), ("fp8", (9, 0), True),
        ("fp16", (7, 0), True), ("fp32", (6, 0), True),
    ],
)  # fmt: skip
def test_precisions_begin_where_the_hardware_has_them(precision: str, capability: tuple[int, int], fits: bool) -> None:
    problem = precision_problem(precision, capability, "this GPU")
    assert (problem is None) == fits
    assert fits or "set trainer.precision to" in str(problem)


def test_a_problem_says_what_there_is_and_how_to_fix_it() -> None:
    assert precision_problem("bf16", (7, 0), "v100") == (
        "bf16 needs compute capability 8.0, v100 has 7.0; set trainer.precision to fp16 or fp32, "
        "or use GPUs that support it"
    )
    assert precision_words((8, 0)) == "fp32, fp16, bf16, tf32; no fp8"


@pytest.mark.parametrize(
    ("cuda", "driver", "fits"),
    [
        ("12.4", "550.54.15", True), ("12.9", "525.60.13", True), ("12.1", "525.60.12", False),
        ("12.1", "470.57.02", False), ("11.8", "470.57.02", True), ("13.0", "570.10", False),
        ("13.0", "580.65.06", True), ("99.0", "1.0", True), ("12.1", "unreadable", True), ("", "470.57.02", True),
    ],
)  # fmt: skip
def test_an_image_needs_a_driver_of_its_cudas_time_and_the_unknown_is_no_fault(
    cuda: str, driver: str, fits: bool
) -> None:
    assert (driver_problem(cuda, driver) is None) == fits


def test_the_driver_that_is_needed_is_named_as_nvidia_writes_it() -> None:
    assert "CUDA 13.0 needs driver 580.65.06 or newer, this is 550.54.15" in str(driver_problem("13.0", "550.54.15"))


def test_the_node_unlike_most_is_the_odd_one() -> None:
    types = {"a": ("A100",) * 8, "b": ("A100",) * 8, "c": ("V100",) * 4}
    assert odd_ones(types) == {"c": "has 4 × V100 where most nodes have 8 × A100"}
    assert odd_ones({"a": ("A100",)}) == {}
