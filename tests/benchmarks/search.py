"""A whole search on two cores, against the same trials without Ray, and against one plain loop after another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import yaml

from data.synthetic import generate
from ovr_ray import cluster
from ovr_ray.images import load, read_labels
from ovr_ray.recipe import Recipe, parse
from ovr_ray.runs import RunFolder
from tests.benchmarks.bare import FACTS
from tests.benchmarks.bare import IMAGES as DECODED
from tests.benchmarks.measure import Row, row

LONG = True
ELPV = Path(__file__).parents[2] / "data" / "elpv"
"""Folder in which ``make demo`` puts real images; if it does not exist, images are drawn."""
BACKBONE, WEIGHTS = "efficientnet_lite0", "DEFAULT"
IMAGES, SIZE, TRIALS, EPOCHS, SLOTS, RUNS = 400, 128, 6, 4, 2, 3
"""Images, their size in pixels a side, trials of each of two tasks, epochs, trials at the same time, runs."""


def rows() -> list[Row]:
    """Return the two comparisons; images are decoded before, and the loop by hand decodes them again."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipes = {scheduler: _recipe(folder, scheduler) for scheduler in ("none", "asha")}
        _write_decoded(folder, recipes["none"])
        taken: dict[str, list[dict[str, Any]]] = {"none": [], "bare": [], "asha": [], "hand": []}
        for run in range(RUNS):
            taken["none"].append(_tuned(folder, recipes["none"]))
            _write_trials(folder, recipes["none"])
            taken["bare"].append(_bare(folder, "trials", SLOTS))
            taken["asha"].append(_tuned(folder, recipes["asha"]))
            if run == 0:  # ten minutes, and four times ours: no doubt that more runs would settle
                taken["hand"].append(_bare(folder, "loops", 1))
        return [
            _row("search", "bare processes", taken["none"], taken["bare"], 0.95),
            _row("search, early stopping", "hand-run", taken["asha"], taken["hand"], 2.5),
        ]


def _row(name: str, baseline: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], goal: float) -> Row:
    """Return a comparison of whole commands; ``ratio_without_start`` leaves out our time until Ray is up."""
    whole, searched = (median(run[key] for run in ours) for key in ("seconds", "searched"))
    other = median(run["seconds"] for run in theirs)
    more = {"images": IMAGES, "trials": 2 * TRIALS, "epochs": median(run["epochs"] for run in ours)}
    more |= {"searched_s": searched, "start_s": round(whole - searched, 1)}
    more |= {"ratio_without_start": round(other / searched, 3)}
    more |= {"best_f1": ours[-1]["f1"], "baseline_best_f1": theirs[-1]["f1"]}
    return row(name, baseline, whole, other, goal, RUNS, **more)


def _recipe(folder: Path, scheduler: str) -> Recipe:
    """Return a recipe with random draws, so that both schedulers, and all runs, try the same configs."""
    real, labels = ELPV.exists(), ("defective", "monocrystalline") if ELPV.exists() else ("crack", "inactive")
    if not real and not (folder / "data.csv").exists():
        generate(folder, count=IMAGES, size=SIZE)
    images = ELPV if real else folder
    task = {
        "trials": TRIALS,
        "default": {"backbone": BACKBONE, "weights": WEIGHTS, "lr": 1e-3, "batch_size": 32, "optimizer": "adam"},
        "space": {"lr": {"loguniform": [1e-4, 3e-3]}, "weight_decay": {"loguniform": [1e-5, 1e-2]}},
    }
    plain = {
        "name": f"search-{scheduler}",
        "data": {"labels": str(images / "data.csv"), "images": str(images), "image_size": SIZE, "limit": IMAGES},
        "tasks": dict.fromkeys(labels, task),
        "search": {
            "searcher": "random",
            "scheduler": scheduler,
            "max_epochs": EPOCHS,
            "grace_epochs": 1,
            "reduction": 2,
            "max_concurrent": SLOTS,
        },
        "storage": str(folder / "runs"),
    }
    (folder / f"{scheduler}.yaml").write_text(yaml.safe_dump(plain))
    return parse(plain)


def _write_decoded(folder: Path, recipe: Recipe) -> None:
    """Write what the other side needs besides the configs: the images by row, and the facts about them."""
    table = read_labels(recipe.data, recipe.tasks)
    with cluster.connected():
        images, table = load(table, recipe.data, recipe.storage, memory=1e9)
        (window,) = images.windows(np.ones(len(table.files), bool), None)
        mean, std = images.pixel_statistics(table.rows("train"))
        decoded = np.zeros((len(table.files), 1, SIZE, SIZE), np.uint8)
        for at, image in window.items():
            decoded[at] = image
    np.save(folder / DECODED, decoded)
    tasks = {}
    for task in recipe.tasks:
        rows = {split: np.flatnonzero(np.isfinite(table.labels_of(task, split))).tolist() for split in ("train", "val")}
        tasks[task] = {"labels": np.nan_to_num(table.labels[task]).tolist(), **rows}
    facts = {"recipe": recipe.dump(), "files": table.files.tolist(), "tasks": tasks, "mean": mean, "std": std}
    (folder / FACTS).write_text(json.dumps(facts))


def _write_trials(folder: Path, recipe: Recipe) -> None:
    """Write the configs that our side drew, for the other side."""
    facts = json.loads((folder / FACTS).read_text())
    records = sorted((trial.record for trial in RunFolder.of(recipe).trials()), key=lambda record: record.number)
    facts["trials"] = [record.model_dump(mode="json") for record in records]
    (folder / FACTS).write_text(json.dumps(facts))


def _tuned(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Run the whole command with nothing but decoded images there; ``searched`` counts from when Ray is up."""
    run = RunFolder.of(recipe)
    shutil.rmtree(str(run.path), ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    scheduler, began = recipe.search.scheduler, time.monotonic()
    command = [sys.executable, "-m", "ovr_ray.commands.cli", "tune", str(folder / f"{scheduler}.yaml")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    best: dict[str, float] = {}
    count = 0
    for trial in run.trials():
        epochs, task = trial.folder.epochs(), trial.record.task
        count += len(epochs)
        best[task] = max(best.get(task, 0.0), float(epochs.val_f1.max()))
    searched = json.loads(run.clock.read_text())["seconds"]
    return {"seconds": whole, "searched": searched, "epochs": count, "f1": best}


def _bare(folder: Path, side: str, slots: int) -> dict[str, Any]:
    """Run this many processes at the same time; their mean time is that of a perfect packing: all end together."""
    shutil.rmtree(folder / "bare", ignore_errors=True)
    began, taken, best = time.monotonic(), [], dict[str, float]()
    command = [sys.executable, "-m", "tests.benchmarks.bare", side, str(folder)]
    slotted = [[*command, str(slot), str(slots)] for slot in range(slots)]
    running = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in slotted]
    while running:
        for process in [process for process in running if process.poll() is not None]:
            running.remove(process)
            taken.append(time.monotonic() - began)
            assert process.returncode == 0
            for task, f1 in json.loads(process.communicate()[0].splitlines()[-1]).items():
                best[task] = max(best.get(task, 0.0), f1)
        time.sleep(0.05)
    return {"seconds": fmean(taken), "f1": best}
