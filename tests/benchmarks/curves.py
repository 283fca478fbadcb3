"""A recorded table of learning curves, on which policies of a search are replayed in seconds.

``python -m tests.benchmarks.curves FOLDER [--trials N] [--splits N] [--jobs N]`` trains the first configs that a random
search draws from a wide space, on the solar cells, all epochs of each. FOLDER keeps the logits of the validation and
test images after every epoch; what it holds is not trained again. The default comes first, and splits alternate, so
that a table that was interrupted is balanced. The whole table takes about two hours on two cores.

Then policies are replayed many times, with the recorded trials in random order behind the default. The table that is
printed has the average precision on test of what each policy chose by validation, less that of the default trained
alone in the same order of images, and the epochs that it took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from ovr_ray.images import read_image
from ovr_ray.images.augment import augmented
from ovr_ray.images.splitting import split
from ovr_ray.model import SubModel, average_precision, build, initial_weights
from ovr_ray.recipe import Augment, Config, RandomSplit, Recipe, parse
from ovr_ray.search.multiplex import TaskSearch
from ovr_ray.search.rules import rule_of, rungs
from ovr_ray.search.space import TaskSpace
from ovr_ray.training import Trainer, derived_seed, keep_pages
from tests.benchmarks.quality import IMAGES, LABELS
from tests.support import GRAY

TASKS: Final = ("crack", "inactive")
STORED, EPOCHS, REPLAYS, BATCH = 128, 8, 1000, 64
WIDE: Final[dict[str, Any]] = {
    "lr": {"loguniform": [2e-4, 4e-3]},
    "weight_decay": {"loguniform": [1e-5, 1e-1]},
    "pos_weight": {"choice": ["balanced", 1.0]},
    "image_size": {"choice": [64, 96, 128]},
    "unfreeze_epoch": {"choice": [1, 2, 3]},
    "batch_size": {"choice": [16, 32, 64]},
    "body_lr_factor": {"choice": [1.0, 0.3]},
    "rotation": {"choice": [0.0, 10.0]},
    "brightness": {"choice": [0.0, 0.2]},
}
"""The space of ``solar_cells_cpu.yaml``, and what else may matter."""


@dataclass(frozen=True)
class Curve:
    """One recorded training.

    Attributes
    ----------
    val, test : ndarray of float64, (epochs)
        Average precision after each epoch.
    cost : float
        Seconds of an epoch, of one thread.
    """

    val: np.ndarray
    test: np.ndarray
    cost: float


Policy = Callable[[list[Curve]], tuple[int, int, float]]
"""A function of trials in the order in which a search starts them: the chosen trial, its epoch, and the seconds."""


def recipe() -> Recipe:
    """Return the recipe whose trials are recorded."""
    default = {
        "backbone": "efficientnet_lite0",
        "lr": 8e-4,
        "warmup_epochs": 1,
        "ema_decay": 0.98,
        "image_size": STORED,
    }
    plain = {
        "name": "curves",
        "data": {"labels": str(LABELS), "images": str(IMAGES), "image_size": STORED},
        "tasks": {task: {"trials": 1, "default": default, "space": WIDE} for task in TASKS},
        "search": {"searcher": "random", "max_epochs": EPOCHS, "grace_epochs": 2, "reduction": 3},
    }
    return parse(plain)


def configs(task: str, count: int) -> list[Config]:
    """Return the first configs that a random search tries."""
    given = recipe()
    search = TaskSearch(task, TaskSpace(given.tasks[task], STORED), given.search)
    return [search.ask(number) for number in range(count)]


def record(folder: Path, task: str, number: int, seed: int, config: Config) -> None:
    """Train one config on one split; write its logits to a file."""
    file = _file(folder, task, number, seed)
    if file.exists():
        return
    keep_pages()
    torch.set_num_threads(1)
    table, parts = labelled(seed)
    pixels = torch.from_numpy(np.stack([read_image(str(IMAGES / name), GRAY, STORED) for name in table.filename]))
    labels = torch.from_numpy(table[task].to_numpy(np.float32))
    rows = {part: np.flatnonzero(parts == part) for part in ("train", "val", "test")}
    unseen = np.concatenate([rows["val"], rows["test"]])
    mean, std = ([float(figure)] for figure in torch.std_mean(pixels[rows["train"]].float() / 255)[::-1])
    size = config.image_size or STORED
    backbone = build(config.backbone, size, initial_weights(config.backbone, config.weights))
    positive = float(labels[rows["train"]].mean())
    weight = (1 - positive) / positive if config.pos_weight == "balanced" else config.pos_weight
    trial_seed = derived_seed(seed, task, number)
    torch.manual_seed(trial_seed)
    sub_model = SubModel(backbone, STORED, size, 1, mean, std)
    device = torch.device("cpu")
    trainer = Trainer(sub_model, config, pos_weight=weight, max_epochs=EPOCHS, device=device, seed=trial_seed)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng([trial_seed, epoch])
        order = rng.permutation(rows["train"])
        for some in np.split(order, range(config.batch_size, len(order), config.batch_size)):
            yield augmented(pixels[some], config.augment(Augment()), rng), labels[some]

    few = unseen[[int(labels[unseen].argmax()), int(labels[unseen].argmin())]]  # its own validation is not used
    logits, spent = [], 0.0
    began = time.thread_time()
    for _ in trainer.epochs(batches, lambda: [(pixels[few], labels[few])], len(rows["train"])):
        spent += time.thread_time() - began
        with torch.inference_mode():
            logits.append(torch.cat([trainer.sub_model.eval()(batch) for batch in pixels[unseen].split(BATCH)]).numpy())
        began = time.thread_time()
    np.savez_compressed(file, allow_pickle=False, logits=np.array(logits, np.float32), seconds=spent / EPOCHS)


def labelled(seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the labels, and the part of each image; recorded files have no labels, which may not be passed on."""
    table = pd.read_csv(LABELS, sep=";")
    return table, split(table[list(TASKS)], RandomSplit(seed=seed)).to_numpy()


def _file(folder: Path, task: str, number: int, seed: int) -> Path:
    return folder / f"{task}-{number:02d}-{seed}.npz"


def curves(folder: Path, task: str, seed: int) -> list[Curve]:
    """Return the recorded trials of a task and split, by number; the list ends before the first that is missing."""
    table, parts = labelled(seed)
    truth = [table.loc[parts == part, task].to_numpy(np.float32) for part in ("val", "test")]
    found: list[Curve] = []
    while (file := _file(folder, task, len(found), seed)).exists():
        kept = np.load(file)
        logits = np.split(kept["logits"], [len(truth[0])], axis=1)
        val, test = ([average_precision(own, e) for e in of] for own, of in zip(truth, logits, strict=True))
        found.append(Curve(np.array(val), np.array(test), float(kept["seconds"])))
    return found


def full(count: int) -> Policy:
    """Return the policy that trains the first trials to their last epoch."""
    return lambda trials: _chosen(trials[:count], [EPOCHS] * count)


def asha(count: int) -> Policy:
    """Return asynchronous halving: at a rung, a trial goes on if it is among the best of those that came before it."""

    def policy(trials: list[Curve]) -> tuple[int, int, float]:
        search, seen, reached = recipe().search, dict[int, list[float]](), []
        for trial in trials[:count]:
            epochs = EPOCHS
            for rung in rungs(search):
                score = trial.val[rung - 1]
                others = seen.setdefault(rung, [])
                is_stopped = bool(others) and score < np.quantile(others, 1 - 1 / search.reduction)
                others.append(score)
                if is_stopped:
                    epochs = rung
                    break
            reached.append(epochs)
        return _chosen(trials, reached)

    return policy


@dataclass
class Replayed:
    """A recorded trial as a rule sees it, after some of its epochs."""

    curve: Curve
    epoch: int = 0
    is_lost = False

    @property
    def scores(self) -> dict[int, float]:
        """The validation scores so far."""
        return dict(enumerate(self.curve.val[: self.epoch].tolist(), 1))

    @property
    def is_ended(self) -> bool:
        """Whether it was trained to its last epoch."""
        return self.epoch == EPOCHS


def halving(count: int) -> Policy:
    """Return halving by promotion: what ``scheduler: halving`` does."""

    def policy(trials: list[Curve]) -> tuple[int, int, float]:
        search = recipe().search.model_copy(update={"scheduler": "halving"})
        rule, begun = rule_of(search, count), [Replayed(trial) for trial in trials[:count]]
        while unsettled := rule.unsettled(begun):
            for number in unsettled:
                begun[number].epoch = rule.goal(begun, number)
        return _chosen(trials, [trial.epoch for trial in begun])

    return policy


def _chosen(trials: list[Curve], reached: list[int]) -> tuple[int, int, float]:
    """Return trial and epoch of the best average precision on validation, and the seconds of all epochs."""
    best = [(trials[number].val[:epochs].max(), number) for number, epochs in enumerate(reached)]
    number = max(best, key=lambda pair: (pair[0], -pair[1]))[1]
    epoch = int(trials[number].val[: reached[number]].argmax())
    return number, epoch, sum(epochs * trial.cost for epochs, trial in zip(reached, trials, strict=False))


def policies(count: int) -> dict[str, Policy]:
    """Return the policies that can be replayed on this many recorded trials."""
    sizes = [size for size in (4, 8, 12, 18, 24) if size <= count]
    found: dict[str, Policy] = {"the default alone": full(1)}
    for size in sizes:
        found |= {
            f"{size} whole trials": full(size),
            f"ASHA of {size}": asha(size),
            f"halving of {size}": halving(size),
        }
    return found


def replayed(tables: list[list[Curve]]) -> Table:
    """Return a row per policy: its gain over the default alone, over random orders of each recorded table."""
    shown = Table(title=f"{REPLAYS} orders of {len(tables)} recorded tables")
    for column in ("policy", "test AP over the default's", "5 % to 95 %", "default's chosen", "cost in defaults"):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    for name, policy in policies(min(map(len, tables))).items():
        rng = np.random.default_rng(0)
        gains, costs, firsts = [], [], []
        for _, trials in product(range(REPLAYS // len(tables)), tables):
            ordered = [trials[0], *(trials[at] for at in 1 + rng.permutation(len(trials) - 1))]
            number, epoch, seconds = policy(ordered)
            _, own, alone = full(1)(ordered)
            gains.append(ordered[number].test[epoch] - trials[0].test[own])
            costs.append(seconds / alone)
            firsts.append(number == 0)
        low, high = np.quantile(gains, [0.05, 0.95])
        cells = [
            f"{np.mean(gains):+.3f}",
            f"{low:+.3f} to {high:+.3f}",
            f"{np.mean(firsts):.0%}",
            f"{np.mean(costs):.1f}",
        ]
        shown.add_row(name, *cells)
    return shown


def main() -> None:
    """Record what is missing, then replay."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.curves", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    drawn = {task: configs(task, given.trials) for task in TASKS}
    seeds = range(1, given.splits + 1)
    wanted = [
        (given.folder, task, number, seed, drawn[task][number])
        for number, seed, task in product(range(given.trials), seeds, TASKS)
    ]
    with multiprocessing.get_context("spawn").Pool(given.jobs, maxtasksperchild=1) as pool:
        pool.starmap(record, wanted, chunksize=1)
    console = Console(width=120)
    for task in TASKS:
        console.print(task)
        console.print(replayed([curves(given.folder, task, seed) for seed in seeds]))


if __name__ == "__main__":
    main()
