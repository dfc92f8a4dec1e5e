"""What a frozen base saves: memory and time of a p-tuning step against a full-training step of the same model.

    python bench/frozen.py                     # alternates both, prints medians and ratios
    python bench/frozen.py --layers 12 --hidden 768 --heads 12

The same rows with the loss on all of their tokens, each measurement a process of its own with the same threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench import prompt_learning as shared
else:
    # as a script, whose own folder is on the path
    import prompt_learning as shared

SIDES = ("p-tuning", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 8), ("hidden", 512), ("heads", 8), ("vocab", 16384), ("tokens", 118)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("batch", 4), ("steps", 10), ("rounds", 3), ("threads", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    shared.add_place(parser)
    arguments = parser.parse_args()
    if arguments.side:
        warnings.simplefilter("ignore")
        print(json.dumps(_measure(arguments)))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            argv = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-4000:])
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{found['full'][0]['parameters'] / 1e6:.1f} million parameters")
    for key, title in (
        ("step_ms", "milliseconds a step"),
        ("peak_mib", "peak memory, MiB"),
        ("grown_mib", "of it for training"),
    ):
        mine, other = (statistics.median(one[key] for one in found[side]) for side in SIDES)
        ratios = [a[key] / b[key] for a, b in zip(found["p-tuning"], found["full"], strict=True)]
        print(f"{title}: p-tuning {mine:.0f}, full training {other:.0f}, ratio {statistics.median(ratios):.2f}")


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    parallel, groups, model = shared._world(arguments)
    from hpclm.core import spec as plan
    from hpclm.engines.megatron.ranks.gpt_model import initialize_weights

    frozen = arguments.side == "p-tuning"
    trainer, gpt, _ = shared._trainer(model, parallel, groups, arguments, plan.OptimSpec(1e-3), frozen=frozen)
    initialize_weights(gpt, model, 1)
    count = iter(range(10**9))
    found = shared._timed(lambda: trainer.step(next(count)).loss, arguments)
    return {
        "step_ms": 1000 / found["steps_per_s"],
        "peak_mib": found["peak_mib"],
        "grown_mib": found["growth_mib"],
        "parameters": sum(parameter.numel() for parameter in gpt.parameters()),
    }


if __name__ == "__main__":
    main()
