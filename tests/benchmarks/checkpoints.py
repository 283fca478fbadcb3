"""What a trial pays for being able to go on: an epoch's checkpoint and rows, and its report to Tune."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from upath import UPath

from data.synthetic import generate
from ovr_ray import search
from ovr_ray.images import ImageSet
from ovr_ray.model import keep_pages
from ovr_ray.recipe import Config, Recipe, parse
from ovr_ray.run import TrialFolder
from ovr_ray.search import run as search_run
from ovr_ray.search import trial as search_trial
from ovr_ray.search.trial import Job, _report, train_trial
from ovr_ray.training.session import Assignment, Session
from tests.benchmarks.measure import Row, process, row, seconds
from tests.support import plain_recipe

LONG = True
NETWORKS, SIZE, BATCH, STEPS, IMAGES = ("efficientnet_lite0", "resnet18"), 224, 32, 2, 1280
"""An epoch of so many images is not trained: its length follows from a few steps."""
RUNS, GOAL = 5, 0.98
TRIALS, EPOCHS, REPORT = 4, 5, 0.05
"""Of each of two tasks that report; seconds that a report may keep a trial."""


def rows() -> list[Row]:
    """Both on this machine's disk."""
    return [*(saving(network) for network in NETWORKS), _reporting()]


def saving(network: str, device: str = "cpu", size: int = SIZE, runs: int = RUNS) -> Row:
    """An epoch and its checkpoint against the epoch alone, in a process of its own, one thread."""
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
        config, metric = Config(backbone=network, weights=None, batch_size=BATCH), "val_f1"
        recipe = _recipe(Path(place), 1, 1000, data={"image_size": size})
        where = TrialFolder(UPath(place) / "trials" / "crack-0000")
        given = Assignment(where, "crack", config, 0, 1.0, [0.5], [0.25], 1000, metric, recipe.checkpoints)
        session = Session(given, recipe, torch.device(device), parts=1)
        images = torch.randint(0, 256, (STEPS * BATCH, 1, size, size), dtype=torch.uint8)
        labels = torch.arange(STEPS * BATCH) % 2 * 1.0
        batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
        for metrics in session.trainer.epochs(lambda epoch: batches, lambda: [(images[:4], labels[:4])], len(images)):
            pipe.recv()
            pipe.send((metrics["images_per_s"], seconds(lambda metrics=metrics: session.save(metrics))))


def _recipe(place: Path, trials: int, epochs: int, **sections: Any) -> Recipe:
    plain = plain_recipe(place, place / "runs", search={"max_epochs": epochs}, **sections)
    return parse(plain | {"tasks": {name: task | {"trials": trials} for name, task in plain["tasks"].items()}})


def _reporting() -> Row:
    """Real trials of the smallest network, as many as there are cores: the driver has none for itself."""
    with tempfile.TemporaryDirectory() as place:
        generate(Path(place), count=400, size=40)
        search_run.train_trial = train_and_time
        try:
            run = search.tune(_recipe(Path(place), TRIALS, EPOCHS), console=Console(quiet=True))
        finally:
            search_run.train_trial = train_trial
        kept = pd.concat(pd.read_csv(file, header=None)[0] for file in run.path.glob("trials/*/reports.csv"))
    more = {"reports": len(kept), "worst_s": round(float(kept.max()), 4)}
    return row("report to Tune", "what it may take", float(kept.median()), REPORT, 1.0, 1, **more)


def train_and_time(config: dict[str, Any], job: Job, images: ImageSet) -> None:
    """A trial as it is, that also writes how long each report kept it."""
    file = Path(job.run.trial(config["task"], config["number"]).path) / "reports.csv"
    search_trial._report = _timed(_report, file)
    train_trial(config, job, images)


def _timed(report: Callable[[dict[str, Any]], None], file: Path) -> Callable[[dict[str, Any]], None]:
    def timed(metrics: dict[str, Any]) -> None:
        began = time.perf_counter()
        report(metrics)
        with file.open("a") as lines:
            lines.write(f"{time.perf_counter() - began}\n")

    return timed
