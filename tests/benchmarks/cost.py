"""An estimate of what the solar-cell recipe costs on GPUs: `python -m tests.benchmarks.cost`.

The floating-point operations of every backbone of the recipe, and the number of epochs before early stopping ends its
trials, are counted. Prices, peak rates, and the share of the peak that such training reaches are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ovr_ray.model import build
from ovr_ray.recipe import RandomSplit, Recipe, load
from ovr_ray.search.multiplex import _scheduler

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "solar_cells.yaml"
IMAGES = 2000
START_SECONDS = 30.0
"""Seconds for a trial's process, imports and weights: 5 to 12 were measured on 2 CPU cores, more with a download."""


@dataclass(frozen=True)
class Machine:
    """An instance type.

    Attributes
    ----------
    name, gpu : str
    dollars : float
        Price per hour on demand: AWS's list price in us-west-2, 2025. Spot costs a third to a half of it.
    peak : float
        TFLOP/s of the format that training uses: bfloat16 with float32 sums, or float32 on GPUs without bfloat16.
    share : float
        Share of the peak that such training reaches.
    """

    name: str
    gpu: str
    dollars: float
    peak: float
    share: float


MACHINES = (
    Machine("g4dn.xlarge", "T4 (float32)", 0.526, 8.1, 0.5),
    Machine("g5.xlarge", "A10G (bfloat16)", 1.006, 70.0, 0.2),
    Machine("g6.xlarge", "L4 (bfloat16)", 0.805, 121.0, 0.15),
)


def forward_gflop(backbone: str, size: int) -> float:
    """Return the operations, in 10^9, of one image's way through a network."""
    network = build(backbone, size).network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops()) / 1e9


def epochs_per_trial(recipe: Recipe, trials: int, seed: int) -> float:
    """Return the mean number of epochs with the recipe's early stopping, for trials with simulated scores.

    A score is the trial's quality plus noise that shrinks with the epochs; after one epoch both are equally large.
    """
    rng = np.random.default_rng(seed)
    scheduler, epochs = _scheduler(recipe.search), 0
    for number, quality in enumerate(rng.normal(size=trials)):
        trial = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, recipe.search.max_epochs + 1):
            epochs += 1
            result = {"epoch": epoch, recipe.search.score_column: quality + rng.normal() / epoch}
            if scheduler.on_trial_result(None, trial, result) == "STOP":
                break
    return epochs / trials


def main() -> None:
    """Print the table."""
    recipe = load(RECIPE)
    size, split = recipe.data.image_size, recipe.data.split
    assert isinstance(split, RandomSplit)
    train, val = (IMAGES * share for share in (1 - split.val - split.test, split.val))
    seconds = dict.fromkeys(MACHINES, 0.0)
    for name, task in recipe.tasks.items():
        work = fmean(forward_gflop(backbone, size) for backbone in task.options("backbone"))
        epochs = fmean(epochs_per_trial(recipe, task.trials, seed) for seed in range(20))
        tera = work * (3 * train + val) / 1000  # the backward pass costs twice the forward pass
        print(f"{name}: {task.trials} trials of {epochs:.1f} epochs each, {tera:.1f} TFLOP per epoch")
        for machine in MACHINES:
            epoch = tera / (machine.peak * machine.share)
            seconds[machine] += task.trials * (START_SECONDS + epochs * epoch)
    print("\n| machine | GPU | GPU hours | $ on demand | with 8 machines |\n|---|---|---|---|---|")
    for machine, total in seconds.items():
        hours = total / 3600
        price = f"{hours * machine.dollars:.2f}"
        print(f"| {machine.name} | {machine.gpu} | {hours:.1f} | {price} | {hours / 8 * 60:.0f} min |")


if __name__ == "__main__":
    main()
