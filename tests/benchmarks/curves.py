"""A recorded table of learning curves, on which policies of a search are replayed in seconds.

``python -m tests.benchmarks.curves FOLDER [--trials N] [--splits N] [--jobs N]`` trains the first configs that a random
search draws from a wide space, on the solar cells, all epochs of each. FOLDER keeps the logits of the validation and
test images after every epoch; what it holds is not trained again. The default comes first, and splits alternate, so
that a table that was interrupted is balanced. The whole table takes about an hour on two cores.

Then policies are replayed many times, with the recorded trials in random order behind the default. The table that is
printed has the average precision on test of what each policy chose by validation, less that of the default trained
alone in the same order of images, and the epochs that it took. ``tests.benchmarks.pays`` uses the same recordings.
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
from torch import nn

from ovr_ray.images import read_image
from ovr_ray.images.augment import augmented
from ovr_ray.images.splitting import split
from ovr_ray.model import Backbone, SubModel, activate_out_of_place, average_precision, build, initial_weights
from ovr_ray.recipe import Augment, Config, RandomSplit, Recipe, parse
from ovr_ray.search.multiplex import TaskSearch
from ovr_ray.search.rules import rule_of, rungs
from ovr_ray.search.space import TaskSpace
from ovr_ray.training import derived_seed, keep_pages, learning_rate
from ovr_ray.training.averaging import MovingAverage
from tests.benchmarks.quality import IMAGES, LABELS
from tests.support import GRAY

TASKS: Final = ("crack", "inactive")
STORED, EPOCHS, REPLAYS, BATCH = 96, 8, 1000, 64
WIDE: Final[dict[str, Any]] = {
    "lr": {"loguniform": [2e-4, 4e-3]},
    "weight_decay": {"loguniform": [1e-5, 1e-1]},
    "pos_weight": {"choice": ["balanced", 1.0]},
    "image_size": {"choice": [64, 96]},
    "unfreeze_epoch": {"choice": [1, 2, 3]},
    "batch_size": {"choice": [16, 32, 64]},
    "body_lr_factor": {"choice": [1.0, 0.3]},
    "rotation": {"choice": [0.0, 10.0]},
    "brightness": {"choice": [0.0, 0.2]},
}
"""The space of ``solar_cells_cpu.yaml``, and what else may matter."""


TOGETHER: Final = "together"
"""In place of a task: one network with an output for each of :data:`TASKS`."""


@dataclass(frozen=True)
class Training:
    """A training that is recorded in one file.

    Attributes
    ----------
    task : str
        One of :data:`TASKS`, or :data:`TOGETHER`.
    number : int
        Of its config, as a random search draws them; 0 is the default.
    split : int
        Seed of the split.
    epochs : int
    repeat : int
        Another random seed for each.
    """

    task: str
    number: int
    split: int
    epochs: int = EPOCHS
    repeat: int = 0

    def file(self, folder: Path) -> Path:
        """Return where its logits are kept."""
        return folder / f"{self.task}-{self.number:02d}-{self.epochs}-{self.repeat}-{self.split}.npz"


@dataclass(frozen=True)
class Answers:
    """What a recorded training says of one task.

    Attributes
    ----------
    val, test : ndarray of float32, (epochs, images)
        Logits after each epoch.
    cost : float
        Seconds of an epoch, of one thread.
    """

    val: np.ndarray
    test: np.ndarray
    cost: float


@dataclass(frozen=True)
class Curve:
    """The scores of one recorded training.

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


def record(folder: Path, training: Training) -> None:
    """Train one config on one split; write its logits to a file, (epochs, images) or (epochs, images, tasks)."""
    if training.file(folder).exists():
        return
    keep_pages()
    torch.set_num_threads(1)
    table, parts = labelled(training.split)
    pixels = torch.from_numpy(np.stack([read_image(str(IMAGES / name), GRAY, STORED) for name in table.filename]))
    tasks = list(TASKS) if training.task == TOGETHER else [training.task]
    labels = torch.from_numpy(table[tasks].to_numpy(np.float32, copy=True))
    rows = {part: np.flatnonzero(parts == part) for part in ("train", "val", "test")}
    unseen = np.concatenate([rows["val"], rows["test"]])
    mean, std = ([float(figure)] for figure in torch.std_mean(pixels[rows["train"]].float() / 255)[::-1])
    config = configs(tasks[0], training.number + 1)[-1]
    size = config.image_size or STORED
    positive = labels[rows["train"]].mean(0)
    weights = (1 - positive) / positive if config.pos_weight == "balanced" else positive * 0 + config.pos_weight
    seed = derived_seed(training.split, f"{training.task}-{training.repeat}", training.number)
    torch.manual_seed(seed)
    backbone = build(config.backbone, size, initial_weights(config.backbone, config.weights))
    sub_model = SubModel(_with_outputs(backbone, len(tasks)), STORED, size, 1, mean, std)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(rows["train"])
        for some in np.split(order, range(config.batch_size, len(order) - 1, config.batch_size)):  # no batch of one
            yield augmented(pixels[some], config.augment(Augment()), rng), labels[some]

    logits, spent = [], 0.0
    began = time.thread_time()
    for trained in _trained(sub_model, config, weights, batches, len(rows["train"]), training.epochs, seed):
        spent += time.thread_time() - began
        with torch.inference_mode():
            answers = torch.cat([trained.eval()(batch) for batch in pixels[unseen].split(BATCH)])
        logits.append(answers.reshape(len(unseen), len(tasks)).numpy())
        began = time.thread_time()
    kept = np.array(logits, np.float32)
    np.savez_compressed(training.file(folder), allow_pickle=False, logits=kept, seconds=spent / training.epochs)


def _with_outputs(backbone: Backbone, count: int) -> Backbone:
    """Give the network this many outputs."""
    if count > 1:
        head = backbone.network.get_submodule(backbone.head)
        assert isinstance(head, nn.Linear)
        backbone.network.set_submodule(backbone.head, nn.Linear(head.in_features, count))
    return backbone


def _trained(
    sub_model: SubModel,
    config: Config,
    weights: torch.Tensor,
    batches: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]],
    images: int,
    epochs: int,
    seed: int,
) -> Iterator[SubModel]:
    """Train as :class:`~ovr_ray.training.Trainer` does, with an output per weight; yield the average of each epoch."""
    sub_model = sub_model.to(memory_format=torch.channels_last)
    activate_out_of_place(sub_model)
    average, loss_of = MovingAverage(sub_model, config.ema_decay), nn.BCEWithLogitsLoss(pos_weight=weights)
    head = {id(parameter) for parameter in sub_model.head().parameters()}
    body = [parameter for parameter in sub_model.parameters() if id(parameter) not in head]
    factors = (config.body_lr_factor, 1.0)
    groups: list[dict[str, Any]] = [{"params": body}, {"params": list(sub_model.head().parameters())}]
    optimizer = torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
    for epoch in range(1, epochs + 1):
        torch.manual_seed(derived_seed(seed, "dropout", epoch))
        sub_model.train()
        sub_model.set_frozen(epoch < config.unfreeze_epoch)
        seen = 0
        for pixels, labels in batches(epoch):
            lr = learning_rate(config, epoch, epochs, (seen + len(labels) / 2) / images)
            seen += len(labels)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = factor * lr
            optimizer.zero_grad(set_to_none=True)
            loss_of(sub_model(pixels).view_as(labels), labels).backward()
            optimizer.step()
            average.update()
        yield average.sub_model


def labelled(split_seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the labels, and the part of each image; recorded files have no labels, which may not be passed on."""
    table = pd.read_csv(LABELS, sep=";")
    return table, split(table[list(TASKS)], RandomSplit(seed=split_seed)).to_numpy()


def truth(task: str, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the validation and the test images."""
    table, parts = labelled(split_seed)
    val, test = (table.loc[parts == part, task].to_numpy(np.float32) for part in ("val", "test"))
    return val, test


def answers(folder: Path, training: Training, task: str) -> Answers:
    """Return what a recorded training says of a task."""
    kept = np.load(training.file(folder))
    place = TASKS.index(task) if training.task == TOGETHER else 0
    val, test = np.split(kept["logits"][:, :, place], [len(truth(task, training.split)[0])], axis=1)
    return Answers(val, test, float(kept["seconds"]))


def curves(folder: Path, task: str, split_seed: int) -> list[Curve]:
    """Return the recorded trials of a task and split, by number; the list ends before the first that is missing."""
    of_val, of_test = truth(task, split_seed)
    found: list[Curve] = []
    while (training := Training(task, len(found), split_seed)).file(folder).exists():
        said = answers(folder, training, task)
        val = [average_precision(of_val, logits) for logits in said.val]
        test = [average_precision(of_test, logits) for logits in said.test]
        found.append(Curve(np.array(val), np.array(test), said.cost))
    return found


def record_all(folder: Path, trainings: list[Training], jobs: int) -> None:
    """Record what is missing, in processes of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        pool.starmap(record, [(folder, training) for training in trainings], chunksize=1)


def full(count: int) -> Policy:
    """Return the policy that trains the first trials to their last epoch."""
    return lambda trials: _chosen(trials[:count], [EPOCHS] * count)


def last(count: int) -> Policy:
    """Return the policy that trains the first trials to their last epoch, and compares and takes this epoch."""

    def policy(trials: list[Curve]) -> tuple[int, int, float]:
        number = max(range(count), key=lambda number: (trials[number].val[-1], -number))
        return number, EPOCHS - 1, sum(EPOCHS * trial.cost for trial in trials[:count])

    return policy


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
    return lambda trials: _chosen(trials, halving_epochs(trials[:count]))


def halving_epochs(trials: list[Curve]) -> list[int]:
    """Return the epoch that each trial reaches in a search by halving."""
    search = recipe().search.model_copy(update={"scheduler": "halving"})
    rule, begun = rule_of(search, len(trials)), [Replayed(trial) for trial in trials]
    while unsettled := rule.unsettled(begun):
        for number in unsettled:
            begun[number].epoch = rule.goal(begun, number)
    return [trial.epoch for trial in begun]


def _chosen(trials: list[Curve], reached: list[int]) -> tuple[int, int, float]:
    """Return trial and epoch of the best average precision on validation, and the seconds of all epochs."""
    best = [(trials[number].val[:epochs].max(), number) for number, epochs in enumerate(reached)]
    number = max(best, key=lambda pair: (pair[0], -pair[1]))[1]
    epoch = int(trials[number].val[: reached[number]].argmax())
    return number, epoch, sum(epochs * trial.cost for epochs, trial in zip(reached, trials, strict=False))


def policies(count: int) -> dict[str, Policy]:
    """Return the policies that can be replayed on this many recorded trials."""
    sizes = [size for size in (4, 8, 12, 18, 24) if size <= count]
    found: dict[str, Policy] = {"the default alone": full(1), "its last epoch": last(1)}
    for size in sizes:
        found |= {
            f"{size} whole trials": full(size),
            f"{size} whole trials, last epochs": last(size),
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
    seeds = range(1, given.splits + 1)
    wanted = [Training(task, number, seed) for number, seed, task in product(range(given.trials), seeds, TASKS)]
    record_all(given.folder, wanted, given.jobs)
    console = Console(width=120)
    for task in TASKS:
        console.print(task)
        console.print(replayed([curves(given.folder, task, seed) for seed in seeds]))


if __name__ == "__main__":
    main()
