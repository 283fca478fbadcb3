"""What the defaults were chosen by: a hyperparameter at a time, and which score picks what holds on images never seen.

``python -m tests.benchmarks.choices FOLDER [NAME…]`` trains EfficientNet-Lite0 on 60 % of the solar cells, once a name
and task, two at a time, and keeps in FOLDER what every epoch says of the other 40 %; what is there is not trained
again. Then it draws those 40 % into halves, validation and test, over and over, and prints what each way to choose
would have given.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedShuffleSplit

from ovr_ray.images import read_image
from ovr_ray.images.augment import augmented
from ovr_ray.images.labels import split
from ovr_ray.joint.module import views
from ovr_ray.model import SubModel, Trainer, average_precision, build, choose_threshold, f1_at, keep_pages
from ovr_ray.recipe import Augment, Config, RandomSplit
from tests.benchmarks.quality import IMAGES, LABELS

TASKS, SEED, SIZE, EPOCHS, BATCH = ("crack", "inactive"), 1, 128, 8, 64
DRAWS = 200
"""Divisions into validation and test."""

BASE: dict[str, Any] = {"lr": 8e-4, "warmup_epochs": 1, "ema_decay": 0.98}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "px224": {},
    "aug": {"rotation": 10, "crop": 0.2, "brightness": 0.2, "shift": 0.05},
    "oversample": {"pos_weight": 1.0},
    "lr3e-4": {"lr": 3e-4},
    "lr2e-3-body.3": {"lr": 2e-3, "body_lr_factor": 0.3},
    "staged-adam": {"optimizer": "adam", "schedule": {1: 1e-3, 5: 1e-4}, "weight_decay": 0.0, "warmup_epochs": 0},
    "pw1": {"pos_weight": 1.0},
    "wd5e-2": {"weight_decay": 5e-2},
    "batch16": {"batch_size": 16, "lr": 5.6e-4},
}
"""Name -> what differs from BASE; px… is a size, and oversample draws a third of an epoch from the positives."""

Score = Callable[[np.ndarray, np.ndarray], float]
"""From truth and logits."""


def train(folder: Path, name: str, task: str) -> None:
    """One sub-model; what its averaged and its raw weights say after each epoch goes into a file."""
    file = folder / f"{name}_{task}_{SEED}.npz"
    if file.exists():
        return
    keep_pages()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    table, size = pd.read_csv(LABELS, sep=";"), int(name[2:]) if name.startswith("px") else SIZE
    pixels = torch.from_numpy(np.stack([read_image(str(IMAGES / file), "gray", size) for file in table.filename]))
    labels = torch.from_numpy(table[task].to_numpy(np.float32))
    parts = split(table[list(TASKS)], RandomSplit(seed=SEED)).to_numpy()
    seen, unseen = np.flatnonzero(parts == "train"), np.flatnonzero(parts != "train")
    config = Config(backbone="efficientnet_lite0", **(BASE | CHANGES[name]))
    mean, std = ([float(figure)] for figure in torch.std_mean(pixels[seen].float() / 255)[::-1])
    network = build(config.backbone, size, config.weights)
    positive = float(labels[seen].mean())
    weight = (1 - positive) / positive if config.pos_weight == "balanced" else config.pos_weight
    sub_model, device = SubModel(network, size, size, 1, mean, std), torch.device("cpu")
    trainer = Trainer(sub_model, config, pos_weight=weight, max_epochs=EPOCHS, device=device, seed=SEED)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng([SEED, epoch])
        rows = rng.permutation(_oversampled(seen, labels[seen].numpy(), rng) if name == "oversample" else seen)
        for some in np.split(rows, range(config.batch_size, len(rows), config.batch_size)):
            yield augmented(pixels[some], config.augment(Augment()), rng), labels[some]

    def says(network: torch.nn.Module, flipped: bool = False) -> np.ndarray:
        with torch.inference_mode():
            network.eval()
            seen_as = views(pixels[unseen], flipped)
            return torch.stack([torch.cat([network(b) for b in view.split(BATCH)]) for view in seen_as]).mean(0).numpy()

    began, few = time.monotonic(), unseen[:BATCH]  # the trainer's own validation is not looked at
    averaged, raw = [], []
    for _ in trainer.epochs(batches, lambda: [(pixels[few], labels[few])], len(seen)):
        averaged.append(says(trainer.sub_model))
        raw.append(says(trainer._trained))
    told = {"avg": np.array(averaged), "raw": np.array(raw), "flips": says(trainer.sub_model, flipped=True)}
    np.savez(file, **told, y=labels[unseen].numpy(), seconds=time.monotonic() - began)


def _oversampled(rows: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many rows, a third of them positive."""
    many = len(rows) // 3
    yes, no = (
        rng.choice(rows[labels == label], count, replace=count > (labels == label).sum())
        for label, count in ((1, many), (0, len(rows) - many))
    )
    return np.concatenate([yes, no])


def f1(truth: np.ndarray, logits: np.ndarray) -> float:
    """At its best threshold."""
    return f1_at(choose_threshold(truth, logits))(truth, logits)


def cross_entropy(truth: np.ndarray, logits: np.ndarray) -> float:
    """Negated, of the logits after Platt's calibration: positive weights shift them."""
    fitted = LogisticRegression(C=np.inf).fit(logits[:, None], truth)
    return -float(log_loss(truth, fitted.predict_proba(logits[:, None])[:, 1]))


def expected_f1(truth: np.ndarray, logits: np.ndarray) -> float:
    """The threshold of the highest F1 that Platt's probabilities expect (Lipton et al., 2014)."""
    order = np.argsort(-logits)
    fitted = LogisticRegression(C=np.inf).fit(logits[:, None], truth)
    probability = fitted.predict_proba(logits[order, None])[:, 1]
    best = (2 * probability.cumsum() / (np.arange(1, len(order) + 1) + probability.sum())).argmax()
    return float(logits[order[best : best + 2]].mean())


def smoothed(truth: np.ndarray, logits: np.ndarray, width: float = 0.15) -> float:
    """The threshold of the highest F1 when every logit is blurred by a Gaussian, of so many standard deviations."""
    places = np.linspace(np.quantile(logits, 0.3), logits.max(), 300)
    above = norm.cdf((logits - places[:, None]) / (width * logits.std()))
    return float(places[(2 * above @ truth / (above.sum(1) + truth.sum())).argmax()])


def bootstrapped(truth: np.ndarray, logits: np.ndarray, times: int = 50) -> float:
    """The median of the best thresholds of resampled images."""
    rng = np.random.default_rng(SEED)
    draws = [rng.integers(len(truth), size=len(truth)) for _ in range(times)]
    return float(np.median([choose_threshold(truth[rows], logits[rows]) for rows in draws if truth[rows].any()]))


SCORES: dict[str, Score] = {"F1": f1, "average precision": average_precision, "cross-entropy": cross_entropy}
THRESHOLDS: dict[str, Score] = {
    "best F1 on validation": choose_threshold,
    "the same, median of 50 bootstraps": bootstrapped,
    "the same, logits blurred": smoothed,
    "expected F1, Platt": expected_f1,
}


def factors(found: dict[tuple[str, str], Any]) -> Table:
    """A row a change: what its last epoch says of all the images never seen."""
    table = Table(title=f"EfficientNet-Lite0, {SIZE} pixels, {EPOCHS} epochs; 640 images not trained on")
    for column in ("", "task", "AP", "not averaged", "mean of 3 epochs", "four flips", "best F1", "four flips", "s"):
        table.add_column(column, justify="left" if column in ("", "task") else "right")
    for (name, task), told in found.items():
        truth, last = told["y"], told["avg"][-1]
        said = [last, told["raw"][-1], told["avg"][-3:].mean(0), told["flips"]]
        figures = [*(average_precision(truth, each) for each in said), f1(truth, last), f1(truth, told["flips"])]
        table.add_row(name, task, *(f"{figure:.3f}" for figure in figures), f"{told['seconds']:.0f}")
    return table


def selections(found: dict[tuple[str, str], Any], task: str) -> Table:
    """What the epoch or trial that a score picks on validation is worth on test, mean over the draws."""
    trials = [told for (name, of), told in found.items() if of == task and len(told["avg"]) == EPOCHS]
    truth, logits = trials[0]["y"], np.stack([told["avg"] for told in trials])
    worth: dict[str, list[tuple[float, float]]] = {}
    for val, test in _draws(truth):
        for name, score in SCORES.items():
            scores = np.array([[score(truth[val], epoch[val]) for epoch in trial] for trial in logits])
            running = np.apply_along_axis(np.convolve, 1, scores, np.ones(3) / 3, "valid")
            best_trial, best_epoch = np.unravel_index(scores.argmax(), scores.shape)
            steady_trial, steady_epoch = np.unravel_index(running.argmax(), running.shape)
            last = scores[:, -1].argmax()
            picks = {"any epoch": (best_trial, best_epoch), "last epoch": (last, -1)}
            picks |= {"mean of 3 epochs": (steady_trial, steady_epoch + 1)}
            for how, (trial, epoch) in picks.items():
                said = logits[trial, epoch]
                at = choose_threshold(truth[val], said[val])
                gained = average_precision(truth[test], said[test]), f1_at(at)(truth[test], said[test])
                worth.setdefault(f"{name}, {how}", []).append(gained)
    return _means(f"{task}: {len(trials)} trials", "picked by", worth)


def thresholds(found: dict[tuple[str, str], Any], task: str) -> Table:
    """What a threshold that was chosen on validation is worth on test, over the draws and all trials' last epochs."""
    worth: dict[str, list[tuple[float, float]]] = {}
    for told in (told for (_, of), told in found.items() if of == task):
        truth, said = told["y"], told["flips"]
        for val, test in list(_draws(truth))[: DRAWS // 4]:
            for name, choose in THRESHOLDS.items():
                at = choose(truth[val], said[val])
                gained = average_precision(truth[test], said[test]), f1_at(at)(truth[test], said[test])
                worth.setdefault(name, []).append(gained)
    return _means(task, "threshold", worth)


def _draws(truth: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from StratifiedShuffleSplit(DRAWS, test_size=0.5, random_state=SEED).split(truth, truth)


def _means(title: str, column: str, worth: dict[str, list[tuple[float, float]]]) -> Table:
    table = Table(title=title)
    for name in (column, "test AP", "test F1"):
        table.add_column(name, justify="left" if name == column else "right")
    for name, gained in worth.items():
        table.add_row(name, *(f"{figure:.3f}" for figure in np.mean(gained, 0)))
    return table


def main() -> None:
    """Train what is lacking, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.choices", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(CHANGES), help=f"of {', '.join(CHANGES)}")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(CHANGES)):
        parser.error(f"no such change: {', '.join(unknown)}; there are {', '.join(CHANGES)}")
    asked.folder.mkdir(parents=True, exist_ok=True)
    wanted = [(asked.folder, name, task) for name in asked.names for task in TASKS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(train, wanted, chunksize=1)
    found = {(name, task): np.load(folder / f"{name}_{task}_{SEED}.npz") for folder, name, task in wanted}
    console = Console(width=120)
    console.print(factors(found))
    for task in TASKS:
        console.print(selections(found, task))
        console.print(thresholds(found, task))


if __name__ == "__main__":
    main()
