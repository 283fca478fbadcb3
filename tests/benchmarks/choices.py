"""The comparison behind the defaults: single hyperparameters, and scores by which epochs and thresholds are chosen.

``python -m tests.benchmarks.choices FOLDER [NAME…]`` trains EfficientNet-Lite0 on 60 % of the solar cells, once per
name and task, two at the same time. FOLDER keeps the logits of the other 40 % after every epoch; a result that exists
is not trained again. Then those 40 % are split at random into validation and test, many times, and the scores that
each way to choose would have given are printed.
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
from ovr_ray.images.splitting import split
from ovr_ray.joint.module import views
from ovr_ray.model import SubModel, average_precision, build, choose_threshold, f1_at, initial_weights
from ovr_ray.recipe import Augment, Config, RandomSplit
from ovr_ray.training import Trainer, keep_pages
from tests.benchmarks.quality import IMAGES, LABELS
from tests.support import GRAY

TASKS, SEED, SIZE, EPOCHS, BATCH = ("crack", "inactive"), 1, 128, 8, 64
DRAWS = 200
"""Number of splits into validation and test."""

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
"""Name -> fields that differ from BASE; px… is a size, and oversample draws a third of an epoch from the positives."""

Score = Callable[[np.ndarray, np.ndarray], float]
"""A function of truth and logits."""


def train(folder: Path, name: str, task: str) -> None:
    """Train one sub-model; write the logits of its averaged and its raw weights after each epoch to a file."""
    file = folder / f"{name}_{task}_{SEED}.npz"
    if file.exists():
        return
    keep_pages()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    table, size = pd.read_csv(LABELS, sep=";"), int(name[2:]) if name.startswith("px") else SIZE
    pixels = torch.from_numpy(np.stack([read_image(str(IMAGES / file), GRAY, size) for file in table.filename]))
    labels = torch.from_numpy(table[task].to_numpy(np.float32))
    splits = split(table[list(TASKS)], RandomSplit(seed=SEED)).to_numpy()
    seen, unseen = np.flatnonzero(splits == "train"), np.flatnonzero(splits != "train")
    config = Config(backbone="efficientnet_lite0", **(BASE | CHANGES[name]))
    mean, std = ([float(figure)] for figure in torch.std_mean(pixels[seen].float() / 255)[::-1])
    backbone = build(config.backbone, size, initial_weights(config.backbone, config.weights))
    positive = float(labels[seen].mean())
    weight = (1 - positive) / positive if config.pos_weight == "balanced" else config.pos_weight
    sub_model, device = SubModel(backbone, size, size, 1, mean, std), torch.device("cpu")
    trainer = Trainer(sub_model, config, pos_weight=weight, max_epochs=EPOCHS, device=device, seed=SEED)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng([SEED, epoch])
        rows = rng.permutation(_oversampled(seen, labels[seen].numpy(), rng) if name == "oversample" else seen)
        for some in np.split(rows, range(config.batch_size, len(rows), config.batch_size)):
            yield augmented(pixels[some], config.augment(Augment()), rng), labels[some]

    def logits_of(network: torch.nn.Module, flipped: bool = False) -> np.ndarray:
        with torch.inference_mode():
            network.eval()
            batches = pixels[unseen].split(BATCH)
            each = [network(views(batch, flipped)).view(-1, len(batch)).mean(0) for batch in batches]
            return torch.cat(each).numpy()

    began, few = time.monotonic(), unseen[:BATCH]  # the trainer's own validation is not used
    averaged, raw = [], []
    for _ in trainer.epochs(batches, lambda: [(pixels[few], labels[few])], len(seen)):
        averaged.append(logits_of(trainer.sub_model))
        raw.append(logits_of(trainer._trained))
    flips = logits_of(trainer.sub_model, flipped=True)
    found = {"avg": np.array(averaged), "raw": np.array(raw), "flips": flips, "y": labels[unseen].numpy()}
    np.savez(file, allow_pickle=False, **found, seconds=np.array(time.monotonic() - began))


def _oversampled(rows: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many rows, a third of them positive."""
    many = len(rows) // 3
    yes, no = (
        rng.choice(rows[labels == label], count, replace=count > (labels == label).sum())
        for label, count in ((1, many), (0, len(rows) - many))
    )
    return np.concatenate([yes, no])


def f1(truth: np.ndarray, logits: np.ndarray) -> float:
    """Return F1 at its best threshold."""
    return f1_at(choose_threshold(truth, logits))(truth, logits)


def cross_entropy(truth: np.ndarray, logits: np.ndarray) -> float:
    """Return the negated cross-entropy after Platt's calibration, because positive weights shift the logits."""
    fitted = LogisticRegression(C=np.inf).fit(logits[:, None], truth)
    return -float(log_loss(truth, fitted.predict_proba(logits[:, None])[:, 1]))


def expected_f1(truth: np.ndarray, logits: np.ndarray) -> float:
    """Return the threshold of the highest F1 that Platt's probabilities predict (Lipton et al., 2014)."""
    order = np.argsort(-logits)
    fitted = LogisticRegression(C=np.inf).fit(logits[:, None], truth)
    probability = fitted.predict_proba(logits[order, None])[:, 1]
    best = (2 * probability.cumsum() / (np.arange(1, len(order) + 1) + probability.sum())).argmax()
    return float(logits[order[best : best + 2]].mean())


def smoothed(truth: np.ndarray, logits: np.ndarray, width: float = 0.15) -> float:
    """Return the threshold of the highest F1 if a Gaussian, ``width`` standard deviations wide, blurs every logit."""
    places = np.linspace(np.quantile(logits, 0.3), logits.max(), 300)
    above = norm.cdf((logits - places[:, None]) / (width * logits.std()))
    return float(places[(2 * above @ truth / (above.sum(1) + truth.sum())).argmax()])


def bootstrapped(truth: np.ndarray, logits: np.ndarray, times: int = 50) -> float:
    """Return the median of the best thresholds of resampled images."""
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
    """Return a row per change: the scores of its last epoch on all images that were not trained on."""
    table = Table(title=f"EfficientNet-Lite0, {SIZE} pixels, {EPOCHS} epochs; 640 images not trained on")
    for column in ("", "task", "AP", "not averaged", "mean of 3 epochs", "four flips", "best F1", "four flips", "s"):
        table.add_column(column, justify="left" if column in ("", "task") else "right")
    for (name, task), trained in found.items():
        truth, last, flips = trained["y"], trained["avg"][-1], trained["flips"]
        compared = [last, trained["raw"][-1], trained["avg"][-3:].mean(0), flips]
        figures = [*(average_precision(truth, logits) for logits in compared), f1(truth, last), f1(truth, flips)]
        table.add_row(name, task, *(f"{figure:.3f}" for figure in figures), f"{trained['seconds']:.0f}")
    return table


def selections(found: dict[tuple[str, str], Any], task: str) -> Table:
    """Return the test scores of the epoch or trial that a score picks on validation, as means over the draws."""
    trials = [trained for (_, of), trained in found.items() if of == task and len(trained["avg"]) == EPOCHS]
    truth, logits = trials[0]["y"], np.stack([trained["avg"] for trained in trials])
    worth: dict[str, list[tuple[float, float]]] = {}
    for val, test in _draws(truth):
        for name, score in SCORES.items():
            scores = np.array([[score(truth[val], epoch[val]) for epoch in trial] for trial in logits])
            running = np.apply_along_axis(np.convolve, 1, scores, np.ones(3) / 3, "valid")
            best_trial, best_epoch = _largest(scores)
            steady_trial, steady_epoch = _largest(running)
            last = int(scores[:, -1].argmax())
            picks = {"any epoch": (best_trial, best_epoch), "last epoch": (last, -1)}
            picks |= {"mean of 3 epochs": (steady_trial, steady_epoch + 1)}
            for how, (trial, epoch) in picks.items():
                picked = logits[trial, epoch]
                at = choose_threshold(truth[val], picked[val])
                gained = average_precision(truth[test], picked[test]), f1_at(at)(truth[test], picked[test])
                worth.setdefault(f"{name}, {how}", []).append(gained)
    return _means(f"{task}: {len(trials)} trials", "picked by", worth)


def thresholds(found: dict[tuple[str, str], Any], task: str) -> Table:
    """Return the test scores of thresholds chosen on validation, as means over draws and all trials' last epochs."""
    worth: dict[str, list[tuple[float, float]]] = {}
    for trained in (trained for (_, of), trained in found.items() if of == task):
        truth, logits = trained["y"], trained["flips"]
        for val, test in list(_draws(truth))[: DRAWS // 4]:
            for name, choose in THRESHOLDS.items():
                at = choose(truth[val], logits[val])
                gained = average_precision(truth[test], logits[test]), f1_at(at)(truth[test], logits[test])
                worth.setdefault(name, []).append(gained)
    return _means(task, "threshold", worth)


def _largest(table: np.ndarray) -> tuple[int, int]:
    """Return row and column of the largest entry."""
    row, column = np.unravel_index(table.argmax(), table.shape)
    return int(row), int(column)


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
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.choices", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(CHANGES), help=f"one of {', '.join(CHANGES)}")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(CHANGES)):
        parser.error(f"no such change: {', '.join(unknown)}; there are {', '.join(CHANGES)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    wanted = [(given.folder, name, task) for name in given.names for task in TASKS]
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
