"""The training that a search is compared with, in processes that do not use Ray.

``python -m tests.benchmarks.bare SIDE FOLDER SLOT SLOTS``: SIDE is ``trials`` (this project's training on decoded
images) or ``loops`` (a loop as one writes it by hand). FOLDER holds what :mod:`tests.benchmarks.search` wrote. Every
SLOTS-th trial, from SLOT on, is trained. The last line is the best validation F1 of every task, at its best threshold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from upath import UPath

from ovr_ray.model import choose_threshold, f1_at
from ovr_ray.recipe import Config, Recipe, parse
from ovr_ray.runs import TrialFolder, trial_name
from ovr_ray.training import Assignment, Session, derived_seed, keep_pages
from tests.benchmarks.plain import plain_loop

FACTS: Final = "facts.json"
"""File of the folder with the recipe, the split and labels of every task, and the trials' configs."""

IMAGES: Final = "images.npy"
"""File of the folder with all decoded images."""

CPU: Final = torch.device("cpu")


def trials(folder: Path, facts: dict[str, Any], mine: slice) -> Iterator[tuple[str, float]]:
    """Train the trials with their checkpoints on one thread; batches, and so scores, are those of the search."""
    keep_pages()
    torch.set_num_threads(1)
    recipe, images = parse(facts["recipe"]), np.load(folder / IMAGES)
    for given in (_assignment(folder, facts, recipe, trial) for trial in facts["trials"][mine]):
        session, batch_size = Session(given, CPU), given.config.batch_size
        shuffled = partial(_shuffled, images, given.train_labels, batch_size, given.seed)
        ordered = partial(_ordered, images, given.val_labels, 2 * batch_size)
        for row in session.trainer.epochs(shuffled, ordered, len(_labelled(given.train_labels))):
            session.save(row)
            yield given.task, row["val_f1"]


def _assignment(folder: Path, facts: dict[str, Any], recipe: Recipe, trial: dict[str, Any]) -> Assignment:
    task, number, config = trial["task"], trial["number"], Config(**trial["config"])
    return Assignment(
        folder=TrialFolder(UPath(folder / "bare" / trial_name(task, number))),
        task=task,
        config=config,
        seed=derived_seed(recipe.search.seed, task, number),
        train_labels=_labels(facts, task, "train"),
        val_labels=_labels(facts, task, "val"),
        mean=facts["mean"],
        std=facts["std"],
        stored_size=recipe.data.image_size,
        channels=recipe.data.channels,
        epochs=recipe.search.max_epochs,
        max_epochs=recipe.search.max_epochs,
        goal=recipe.tasks[task].threshold,
        augment=config.augment(recipe.augment),
        score_column=recipe.search.score_column,
        checkpoints=recipe.checkpoints,
    )


def _labels(facts: dict[str, Any], task: str, split: str) -> np.ndarray:
    """Return the task's label of every row (float32); NaN outside the split."""
    labels = np.full(len(facts["files"]), np.nan, np.float32)
    rows = facts["tasks"][task][split]
    labels[rows] = np.array(facts["tasks"][task]["labels"], np.float32)[rows]
    return labels


def _labelled(labels: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isfinite(labels))


def _shuffled(
    images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order, changes = (np.random.default_rng([seed, epoch, stream]) for stream in range(2))
    for pixels, truth in _batches(images, labels, order.permutation(_labelled(labels)), batch_size):
        for image, (horizontal, vertical) in zip(pixels, changes.random((len(pixels), 2)) < 0.5, strict=True):
            if horizontal or vertical:
                image.copy_(image.flip([-1] * bool(horizontal) + [-2] * bool(vertical)))
        yield pixels, truth


def _ordered(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return _batches(images, labels, _labelled(labels), batch_size)


def _batches(
    images: np.ndarray, labels: np.ndarray, rows: np.ndarray, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for chosen in np.split(rows, range(batch_size, len(rows), batch_size)):
        yield torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])


def loops(folder: Path, facts: dict[str, Any], mine: slice) -> Iterator[tuple[str, float]]:
    """Train every epoch of the trials with PyTorch's defaults."""
    recipe = parse(facts["recipe"])
    data, pixels = recipe.data, (facts["mean"][0], facts["std"][0])
    for trial in facts["trials"][mine]:
        config, task = Config(**trial["config"]), trial["task"]
        splits = {split: _table(facts, task, split) for split in ("train", "val")}
        epochs = plain_loop(
            splits,
            task,
            Path(data.images),
            config.backbone,
            config.weights,
            {0: config.lr},
            pixels,
            size=data.image_size,
            epochs=recipe.search.max_epochs,
            batch_size=config.batch_size,
            workers=2,
        )
        truth = splits["val"][task].to_numpy()
        for probabilities in epochs:
            yield task, f1_at(choose_threshold(truth, probabilities["val"]))(truth, probabilities["val"])


def _table(facts: dict[str, Any], task: str, split: str) -> pd.DataFrame:
    rows, labels = facts["tasks"][task][split], facts["tasks"][task]["labels"]
    return pd.DataFrame({"filename": [facts["files"][row] for row in rows], task: [labels[row] for row in rows]})


def main() -> None:
    """Train, and print the best scores as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bare", description=__doc__)
    parser.add_argument("side", choices=("trials", "loops"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("slot", type=int)
    parser.add_argument("slots", type=int)
    given = parser.parse_args()
    facts, best = json.loads((given.folder / FACTS).read_text()), dict[str, float]()
    side = {"trials": trials, "loops": loops}[given.side]
    for task, f1 in side(given.folder, facts, slice(given.slot, None, given.slots)):
        best[task] = max(best.get(task, 0.0), f1)
    print(json.dumps(best))


if __name__ == "__main__":
    main()
