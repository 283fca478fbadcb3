"""What a search is compared with, in processes that know no Ray.

``python -m tests.benchmarks.bare SIDE FOLDER SLOT SLOTS``: SIDE is ``trials`` (the project's training, of decoded
images) or ``loops`` (as one writes it by hand); FOLDER is what :mod:`tests.benchmarks.search` wrote; every SLOTS-th
trial from SLOT on is trained. The last line tells every task's best validation F1, at its best threshold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from upath import UPath

from ovr_ray.model import choose_threshold, f1_at, keep_pages
from ovr_ray.recipe import Config, Recipe, parse
from ovr_ray.run import TrialFolder, trial_name
from ovr_ray.training.session import Assignment, Session, derived_seed
from tests.benchmarks.plain import plain_loop

CPU = torch.device("cpu")


def trials(folder: Path, told: dict[str, Any], mine: slice) -> Iterator[tuple[str, float]]:
    """The trials themselves, one thread each, checkpoints and all: the same batches, so the same scores."""
    keep_pages()
    torch.set_num_threads(1)
    recipe, images = parse(told["recipe"]), np.load(folder / "images.npy")
    for given in (_assignment(folder, told, recipe, trial) for trial in told["trials"][mine]):
        session, task, batch = Session(given, recipe, CPU, 1), told["tasks"][given.task], given.config.batch_size
        rows, labels = {part: np.array(task[part]) for part in ("train", "val")}, np.array(task["labels"], np.float32)
        shuffled = partial(_shuffled, images, labels, rows["train"], batch, given.seed)
        ordered = partial(_batches, images, labels, rows["val"], 2 * batch)
        for metrics in session.trainer.epochs(shuffled, ordered, len(rows["train"])):
            session.save(metrics)
            yield given.task, metrics["val_f1"]


def _assignment(folder: Path, told: dict[str, Any], recipe: Recipe, trial: dict[str, Any]) -> Assignment:
    task, number = trial["task"], trial["number"]
    return Assignment(
        folder=TrialFolder(UPath(folder / "bare" / trial_name(task, number))),
        task=task,
        config=Config(**trial["config"]),
        seed=derived_seed(recipe.search.seed, task, number),
        pos_weight=told["tasks"][task]["pos_weight"],
        mean=told["mean"],
        std=told["std"],
        epochs=recipe.search.max_epochs,
        metric=f"val_{recipe.search.metric}",
        checkpoints=recipe.checkpoints,
    )


def _shuffled(
    images: np.ndarray, labels: np.ndarray, rows: np.ndarray, batch: int, seed: int, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order, changes = (np.random.default_rng([seed, epoch, what]) for what in range(2))
    for pixels, truth in _batches(images, labels, order.permutation(rows), batch):
        for image, (horizontal, vertical) in zip(pixels, changes.random((len(pixels), 2)) < 0.5, strict=True):
            if horizontal or vertical:
                image.copy_(image.flip([-1] * bool(horizontal) + [-2] * bool(vertical)))
        yield pixels, truth


def _batches(
    images: np.ndarray, labels: np.ndarray, rows: np.ndarray, batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for chosen in np.split(rows, range(batch, len(rows), batch)):
        yield torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])


def loops(folder: Path, told: dict[str, Any], mine: slice) -> Iterator[tuple[str, float]]:
    """PyTorch's defaults, and every epoch of every trial."""
    recipe = parse(told["recipe"])
    data, pixels = recipe.data, (told["mean"][0], told["std"][0])
    for trial in told["trials"][mine]:
        config, task = Config(**trial["config"]), trial["task"]
        parts = {part: _table(told, task, part) for part in ("train", "val")}
        how = {"size": data.image_size, "epochs": recipe.search.max_epochs, "batch": config.batch_size, "workers": 2}
        rates, network = {0: config.lr}, (config.backbone, config.weights)
        truth = parts["val"][task].to_numpy()
        for said in plain_loop(parts, task, Path(data.images), *network, rates, pixels, **how):
            yield task, f1_at(choose_threshold(truth, said["val"]))(truth, said["val"])


def _table(told: dict[str, Any], task: str, part: str) -> pd.DataFrame:
    rows, labels = told["tasks"][task][part], told["tasks"][task]["labels"]
    return pd.DataFrame({"filename": [told["files"][row] for row in rows], task: [labels[row] for row in rows]})


def main() -> None:
    """Train, and print the best scores as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bare", description=__doc__)
    parser.add_argument("side", choices=("trials", "loops"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("slot", type=int)
    parser.add_argument("slots", type=int)
    asked = parser.parse_args()
    told, best = json.loads((asked.folder / "told.json").read_text()), dict[str, float]()
    side = {"trials": trials, "loops": loops}[asked.side]
    for task, f1 in side(asked.folder, told, slice(asked.slot, None, asked.slots)):
        best[task] = max(best.get(task, 0.0), f1)
    print(json.dumps(best))


if __name__ == "__main__":
    main()
