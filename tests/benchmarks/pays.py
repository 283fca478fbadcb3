"""What a search adds to its default at equal compute, and one network per task to one network for all.

``python -m tests.benchmarks.pays FOLDER [--splits N] [--jobs N]`` records what is missing in FOLDER, which it shares
with ``tests.benchmarks.curves``, split by split, and compares on the solar cells:

- the default, trained once; once with as many epochs as a search; several times, with the mean of their logits;
- a search by halving: its winner, and the mean of its three best;
- one network with an output per task, at the same number of images: once, and several times.

Every choice (epoch, trial, threshold) is made on the validation images. An arm's figures are means over both tasks. The
differences to the default's mean of several are paired by split, with 95 % intervals of Student's t over splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from ovr_ray.model import average_precision, choose_threshold, f1_at
from tests.benchmarks.curves import (
    EPOCHS,
    TASKS,
    TOGETHER,
    Training,
    answers,
    curves,
    halving_epochs,
    record_all,
    truth,
)

TRIALS: Final = 12
REPEATS: Final = 5
"""Trainings of the default: about as many epochs as a search by halving of :data:`TRIALS` trials takes."""
LONG: Final = EPOCHS * REPEATS
REFERENCE: Final = f"default, mean of {REPEATS}"


@dataclass(frozen=True)
class Chosen:
    """What an arm ended with for one task: logits of both parts, and the epochs that were trained for it."""

    val: np.ndarray
    test: np.ndarray
    epochs: float


def trainings(split: int) -> list[Training]:
    """Return all trainings that the arms need on one split."""
    search = [Training(task, number, split) for number, task in product(range(TRIALS), TASKS)]
    repeats = [Training(task, 0, split, repeat=repeat) for repeat, task in product(range(1, REPEATS), TASKS)]
    long = [Training(task, 0, split, epochs=LONG) for task in TASKS]
    return [*search, *repeats, *long, *(_together(split, repeat) for repeat in range(REPEATS))]


def _together(split: int, repeat: int) -> Training:
    """Return a training of one network for both tasks; it sees as many images as two networks for one task each."""
    return Training(TOGETHER, 0, split, epochs=EPOCHS * len(TASKS), repeat=repeat)


def _mean(folder: Path, task: str, of: list[Training], count: int | None = None) -> Chosen:
    """Return the mean of the logits of trainings, each at its best epoch; with ``count``, of that many best ones."""
    val_truth, _ = truth(task, of[0].split)
    found = []
    for training in of:
        said = answers(folder, training, task)
        scores = [average_precision(val_truth, logits) for logits in said.val]
        best = int(np.argmax(scores))
        found.append((scores[best], said.val[best], said.test[best]))
    found.sort(key=lambda one: -one[0])
    kept = found[:count]
    epochs = sum(training.epochs for training in of) / (len(TASKS) if of[0].task == TOGETHER else 1)
    return Chosen(np.mean([val for _, val, _ in kept], 0), np.mean([test for _, _, test in kept], 0), epochs)


def _searched(folder: Path, task: str, split: int, count: int) -> Chosen:
    """Return the mean of the best trials of a search by halving, each at its best epoch so far."""
    recorded = curves(folder, task, split)[:TRIALS]
    reached = halving_epochs(recorded)
    best = sorted(range(TRIALS), key=lambda number: -recorded[number].val[: reached[number]].max())[:count]
    said = [answers(folder, Training(task, number, split), task) for number in best]
    at = [int(recorded[number].val[: reached[number]].argmax()) for number in best]
    val, test = ([getattr(a, part)[e] for a, e in zip(said, at, strict=True)] for part in ("val", "test"))
    return Chosen(np.mean(val, 0), np.mean(test, 0), float(sum(reached)))


Arm = Callable[[Path, str, int], Chosen]
ARMS: Final[dict[str, Arm]] = {
    "default, once": lambda folder, task, split: _mean(folder, task, [Training(task, 0, split)]),
    f"default, {LONG} epochs": lambda folder, task, split: _mean(folder, task, [Training(task, 0, split, LONG)]),
    REFERENCE: lambda folder, task, split: _mean(
        folder, task, [Training(task, 0, split, repeat=repeat) for repeat in range(REPEATS)]
    ),
    f"halving of {TRIALS}, winner": lambda folder, task, split: _searched(folder, task, split, 1),
    f"halving of {TRIALS}, mean of 3": lambda folder, task, split: _searched(folder, task, split, 3),
    "one network for both, once": lambda folder, task, split: _mean(folder, task, [_together(split, 0)]),
    f"one network for both, mean of {REPEATS}": lambda folder, task, split: _mean(
        folder, task, [_together(split, repeat) for repeat in range(REPEATS)]
    ),
}


def _scores(folder: Path, arm: Arm, split: int) -> tuple[float, float, float]:
    """Return average precision and F1 on test, and epochs; means over the tasks."""
    figures = []
    for task in TASKS:
        val_truth, test_truth = truth(task, split)
        chosen = arm(folder, task, split)
        threshold = choose_threshold(val_truth, _probability(chosen.val))
        f1 = f1_at(threshold)(test_truth, _probability(chosen.test))
        figures.append((average_precision(test_truth, chosen.test), f1, chosen.epochs))
    ap, f1, epochs = np.mean(figures, axis=0)
    return float(ap), float(f1), float(epochs)


def _probability(logits: np.ndarray) -> np.ndarray:
    probability: np.ndarray = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return probability


def compared(folder: Path, splits: list[int]) -> Table:
    """Return a row per arm."""
    table = Table(title=f"means over {len(TASKS)} tasks and {len(splits)} splits, test images")
    for column in ("arm", "AP", f"over '{REFERENCE}'", "F1", "over", "epochs a task"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    scores = {name: np.array([_scores(folder, arm, split) for split in splits]) for name, arm in ARMS.items()}
    for name, own in scores.items():
        gain = [_interval((own - scores[REFERENCE])[:, column]) for column in (0, 1)]
        means = own.mean(0)
        table.add_row(name, f"{means[0]:.3f}", gain[0], f"{means[1]:.3f}", gain[1], f"{means[2]:.0f}")
    return table


def _interval(differences: np.ndarray) -> str:
    mean, count = differences.mean(), len(differences)
    if count < 2 or not differences.any():
        return f"{mean:+.3f}"
    half = t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def main() -> None:
    """Record what is missing, then compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pays", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    splits = list(range(1, given.splits + 1))
    record_all(given.folder, [training for split in splits for training in trainings(split)], given.jobs)
    Console(width=140).print(compared(given.folder, splits))


if __name__ == "__main__":
    main()
