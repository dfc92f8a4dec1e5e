"""What the scheduler knows about its GPUs is compared with a job before it is submitted."""

from __future__ import annotations

import dataclasses

import pytest

from hpclm.containers import LaunchSpec
from hpclm.schedulers.capabilities import SiteCapabilities
from hpclm.schedulers.interface import scheduler_of
from hpclm.schedulers.jobs import StageJob
from hpclm.schedulers.slurm import partitions
from tests.support.sites import SLURM

JOB = StageJob(
    run="r", stage="train", submit=1, title="t", stage_dir="/r/stages/train", payload="/r/payload", device="gpu",
    nodes=1, tasks_per_node=4, cpus_per_task=1, memory_gib=None, time_limit_min=10, total_time_min=10,
    launch=LaunchSpec(), python=("python3",), precision="bf16", device_memory_gib=50.0,
)  # fmt: skip


def problems(gres: str, job: StageJob = JOB, wanted: str | None = None) -> list[str]:
    (partition,) = partitions.parse_sinfo("\n".join(f"p|up|4|64|512000|infinite|{one}" for one in gres.split()))
    capabilities = SiteCapabilities(dataclasses.replace(SLURM, gpu_type=wanted), partition)
    return scheduler_of(SLURM).check_fit(capabilities, [job])


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("gpu:a100:4(S:0-1)", [("a100", 4)]),
        ("gpu:a100:4(S:0,2-3),gpu:v100:2,nic:2", [("a100", 4), ("v100", 2)]),
        ("gpu:8", [("", 8)]),
        ("gpu", [("", 1)]),
        ("gpu:a100:no_consume:4", [("a100", 4)]),
        ("gpu:nvidia_a100-sxm4-80gb:8(S:0-1)", [("nvidia_a100-sxm4-80gb", 8)]),
        ("(null)", []),
        ("gpumem:4,shard:8", []),
    ],
)
def test_gres_text(gres: str, found: list[tuple[str, int]]) -> None:
    assert partitions.parse_gres(gres) == found


def test_types_of_unlike_nodes_are_merged_to_the_most_of_each() -> None:
    (merged,) = partitions.parse_sinfo(
        "p|up|1|8|9|1:00|gpu:a100:4\np|up|1|8|9|1:00|gpu:v100:8\np|up|1|8|9|1:00|gpu:a100:2\n"
    )
    assert (merged.gpu_types, merged.gpus_per_node) == ((("a100", 4), ("v100", 8)), 8)


def test_a_job_that_fits_has_no_problem() -> None:
    assert problems("gpu:a100:4(S:0-1)") == []
    assert problems("gpu:a100:4", wanted="a100") == []
    assert problems("gpu:8") == []


def test_a_type_that_is_not_there_names_what_is() -> None:
    assert problems("gpu:a100:4 gpu:v100:4", wanted="h100") == [
        "stage train: GPUs of type h100 needed, partition p has a100, v100; "
        "choose one of them as `gpu_type` in the site profile (a100, v100)"
    ]
    assert problems("gpu:8", wanted="h100")[0].endswith("partition p has GPUs without a type; leave gpu_type out")


def test_too_few_of_the_wanted_type() -> None:
    (problem,) = problems("gpu:a100:2 gpu:v100:8", wanted="a100")
    assert "4 GPUs of type a100 per node needed, partition p has 2; lower --devices-per-node" in problem


def test_a_precision_that_no_gpu_of_the_partition_has() -> None:
    small = dataclasses.replace(JOB, device_memory_gib=1.0)
    (problem,) = problems("gpu:v100:4", small)
    assert "bf16 needs compute capability 8.0, v100 of p has 7.0; set trainer.precision to fp16 or fp32" in problem
    assert problems("gpu:v100:4 gpu:a100:4", small) == []
    assert len(problems("gpu:v100:4 gpu:a100:4", small, wanted="v100")) == 1
    assert problems("gpu:v100:4", dataclasses.replace(small, device="cpu")) == []


def test_a_model_that_no_gpu_of_the_partition_holds_says_by_how_much() -> None:
    large = dataclasses.replace(JOB, device_memory_gib=100.0)
    assert problems("gpu:a100:4", large) == [
        "stage train: a rank needs an estimated 100.0 GiB, a100 of p has 80.0 (20.0 too little); "
        "raise parallel.tensor or parallel.pipeline, or lower batch.micro"
    ]
    assert problems("gpu:h200:4", large) == []
    assert problems("gpu:something_new:4", large) == []
