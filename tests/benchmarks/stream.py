"""Peak memory, and an epoch's time per image, of 200,000 images of 300 x 300 pixels beside 2,000 that fit in memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from ovr_ray import cluster
from ovr_ray.images import Feed, load, read_labels
from ovr_ray.recipe import Augment, parse
from tests.benchmarks.measure import Row, row, seconds
from tests.benchmarks.predict import write_images
from tests.support import BACKBONE, ancestors

LONG = True
MANY, FEW, DRAWN = int(os.environ.get("STREAM_IMAGES", "200000")), 2000, 2000
"""DRAWN images differ; the others are hard links to them, each read and decoded like a file of its own."""
SIZE, SEEN, BATCH = 300, 64, 32
"""Pixels a side that are stored, and that the network sees, and batch size; the network is tiny: the feed counts."""
EPOCHS, GOAL = 2, 1 / 1.3


def rows() -> list[Row]:
    """Compare the feed alone, and whole trials, with the memory that they hold."""
    kept = os.environ.get("STREAM_FOLDER")  # keeps images and shards for the next call
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipes = {count: _recipe(folder, count) for count in (FEW, MANY)}
        prepared = {count: _call("prepare", path) for count, path in recipes.items()}
        fed = {count: _fed(path) for count, path in recipes.items()}
        tuned = {count: _call("tune", path) for count, path in recipes.items()}
        epoch = {count: _epoch(path) for count, path in recipes.items()}
        more = {"images": MANY, "batch": BATCH, "prepare": prepared[MANY], "tune": tuned[MANY]}
        baseline = f"{FEW} in memory, per image"
        return [
            row(f"feed, {MANY} images streamed", baseline, fed[MANY], fed[FEW], GOAL, EPOCHS, **more),
            row(f"trial, {MANY} images streamed", baseline, epoch[MANY], epoch[FEW], GOAL, EPOCHS),
        ]


def _recipe(folder: Path, count: int) -> Path:
    """Write a recipe with its images and labels, and return its path."""
    images, path = folder / f"images-{count}", folder / f"{count}.yaml"
    shutil.rmtree(folder / "runs" / f"stream-{count}", ignore_errors=True)
    if path.exists():
        return path
    images.mkdir()
    drawn = write_images(images, min(count, DRAWN))
    for number in range(DRAWN, count):
        os.link(drawn[number % DRAWN], images / f"{number:06d}.png")
    names = sorted(file.name for file in images.iterdir())
    labels = pd.DataFrame({"filename": names, "a": np.arange(count) % 2})
    labels.to_csv(folder / f"{count}.csv", sep=";", index=False)
    default = {"backbone": BACKBONE, "weights": None, "image_size": SEEN, "batch_size": BATCH}
    plain = {
        "name": f"stream-{count}",
        "data": {"labels": str(folder / f"{count}.csv"), "images": str(images), "image_size": SIZE},
        "tasks": {"a": {"trials": 1, "default": default}},
        "search": {"max_epochs": EPOCHS, "grace_epochs": 1, "scheduler": "none"},
        "storage": str(folder / "runs"),
    }
    path.write_text(yaml.safe_dump(plain))
    return path


def _call(verb: str, recipe: Path) -> dict[str, Any]:
    """Run a verb; return its seconds, and the peak resident megabytes of each kind of process that it started."""
    began, peaks = time.monotonic(), dict[str, int]()
    command = [sys.executable, "-m", "ovr_ray.commands.cli", verb, str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for name, size in _resident(process.pid):
                peaks[name] = max(peaks.get(name, 0), size)
            time.sleep(0.5)
    assert process.returncode == 0
    largest = dict(sorted(peaks.items(), key=lambda named: -named[1])[:6])
    return {"seconds": round(time.monotonic() - began, 1), "peak_mb": largest}


def _resident(root: int) -> list[tuple[str, int]]:
    """Return name and megabytes of a process and of all below it; shared memory is left out, pages of files count."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) == root or root in ancestors(int(folder.name)):
                status = dict(re.findall(r"(\w+):\s+(\d+) kB", (folder / "status").read_text()))
                own = int(status["RssAnon"]) + int(status["RssFile"])
                name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode().split("(")[0]
                found.append((Path(name).name, own // 1000))
        except (FileNotFoundError, ProcessLookupError, KeyError):
            continue
    return found


def _fed(path: Path) -> float:
    """Return the seconds per image of an epoch's batches alone."""
    recipe = parse(yaml.safe_load(path.read_text()))
    table = read_labels(recipe.data, recipe.tasks)
    torch.set_num_threads(1)  # as in a trial that has one CPU
    with cluster.connected():
        memory = recipe.resources.object_store * cluster.smallest_object_store()
        images, table = load(table, recipe.data, recipe.storage, memory)
        feed = Feed(images, table.labels_of("a", "train"), BATCH)
        taken = [seconds(partial(_drain, feed, epoch)) for epoch in (1, 2, 3)]
    return min(taken[1:]) / len(table.rows("train"))


def _drain(feed: Feed, epoch: int) -> None:
    for _ in feed.shuffled(epoch, 0, Augment()):
        pass


def _epoch(path: Path) -> float:
    """Return the seconds per image of a trial's last epoch, training alone."""
    recipe = parse(yaml.safe_load(path.read_text()))
    (file,) = Path(recipe.storage, recipe.name).rglob("epochs.csv")
    return 1 / float(pd.read_csv(file, sep=";").images_per_s.iloc[-1])
