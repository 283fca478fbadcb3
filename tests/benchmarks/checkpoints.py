"""The time that a trial spends so that it can be resumed: an epoch's checkpoint and row, and its report to Tune."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from upath import UPath

from data.synthetic import generate
from ovr_ray import search
from ovr_ray.images import ImageSet
from ovr_ray.recipe import Augment, Config, Recipe, parse
from ovr_ray.runs import TrialFolder
from ovr_ray.search import run as search_run
from ovr_ray.search import trial as search_trial
from ovr_ray.search.trial import SearchContext, _report, train_trial
from ovr_ray.training import Assignment, EpochRow, Session, keep_pages
from tests.benchmarks.measure import Row, process, row, seconds
from tests.support import plain_recipe

LONG = True
NETWORKS, SIZE, BATCH, STEPS, IMAGES = ("efficientnet_lite0", "resnet18"), 224, 32, 2, 1280
"""Backbones, pixels a side, batch size, steps that are trained, and images of the epoch whose time is computed."""
RUNS, GOAL = 5, 0.98
TRIALS, EPOCHS, REPORT = 4, 5, 0.05
"""Trials of each of two tasks, epochs of a trial, and seconds that a report may take."""


def rows() -> list[Row]:
    """Measure both on this machine's disk."""
    return [*(saving(network) for network in NETWORKS), _reporting()]


def saving(network: str, device: str = "cpu", size: int = SIZE, runs: int = RUNS) -> Row:
    """Compare an epoch and its checkpoint with the epoch alone, in a process of its own, on one thread."""
    with process(_save, network, device, size) as pipe:
        taken = []
        for _ in range(runs + 2):  # from the third on, an older checkpoint has to go
            pipe.send(None)
            taken.append(pipe.recv())
    rate, saved = (median(figures) for figures in zip(*taken[2:], strict=True))
    epoch = IMAGES / rate
    more = {"images": IMAGES, "images_per_s": round(rate, 1), "save_ms": round(1000 * saved, 1), "torch_threads": 1}
    return row(f"checkpoint, {network}, {device}", "epoch without", epoch + saved, epoch, GOAL, runs, **more)


def _save(pipe: Connection, network: str, device: str, size: int) -> None:
    keep_pages()
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as place:
        recipe, balanced = _recipe(Path(place), 1, 1000), np.array([0, 1], np.float32)
        given = Assignment(
            folder=TrialFolder(UPath(place) / "trials" / "crack-0000"),
            task="crack",
            config=Config(backbone=network, weights=None, batch_size=BATCH),
            seed=0,
            train_labels=balanced,
            val_labels=balanced,
            mean=[0.5],
            std=[0.25],
            stored_size=size,
            channels=1,
            epochs=1000,
            max_epochs=1000,
            goal="f1",
            augment=Augment(),
            score_column="val_f1",
            checkpoints=recipe.checkpoints,
        )
        session = Session(given, torch.device(device))
        images = torch.randint(0, 256, (STEPS * BATCH, 1, size, size), dtype=torch.uint8)
        labels = torch.arange(STEPS * BATCH) % 2 * 1.0
        batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
        few = [(images[:4], labels[:4])]
        for trained in session.trainer.epochs(lambda epoch: batches, lambda: few, len(images)):
            pipe.recv()
            pipe.send((trained["images_per_s"], seconds(partial(session.save, trained))))


def _recipe(place: Path, trials: int, epochs: int) -> Recipe:
    plain = plain_recipe(place, place / "runs", search={"max_epochs": epochs})
    return parse(plain | {"tasks": {name: task | {"trials": trials} for name, task in plain["tasks"].items()}})


def _reporting() -> Row:
    """Measure the reports of real trials of the smallest network; they take all cores, so the driver has none."""
    with tempfile.TemporaryDirectory() as place:
        generate(Path(place), count=400, size=40)
        with patch.object(search_run, "train_trial", train_and_time):
            run = search.tune(_recipe(Path(place), TRIALS, EPOCHS), console=Console(quiet=True))
        kept = pd.concat(pd.read_csv(file, header=None)[0] for file in run.path.glob("trials/*/reports.csv"))
    more = {"reports": len(kept), "worst_s": round(float(kept.max()), 4)}
    return row("report to Tune", "what it may take", float(kept.median()), REPORT, 1.0, 1, **more)


def train_and_time(config: dict[str, Any], context: SearchContext, images: ImageSet) -> None:
    """Train a trial as it is, and also write how long each of its reports took."""
    file = Path(context.run.trial(config["task"], config["number"]).path) / "reports.csv"
    with patch.object(search_trial, "_report", _timed(_report, file)):
        train_trial(config, context, images)


def _timed(report: Callable[[EpochRow], None], file: Path) -> Callable[[EpochRow], None]:
    def timed(trained: EpochRow) -> None:
        began = time.perf_counter()
        report(trained)
        with file.open("a") as lines:
            lines.write(f"{time.perf_counter() - began}\n")

    return timed
