"""The quality on test images: ovr-ray beside a plain loop on the solar cells, for several random splits.

``QUALITY_FOLDER=… python -m tests.benchmarks quality`` keeps its results in that folder, resumes there, and writes
``table.md``. ``QUALITY_SEEDS="1 2 3"`` are the seeds of the splits. ``QUALITY_OPTIONS="data.image_size=128"`` changes
the recipe of both sides. The plain loop and the refit see images of ``data.image_size``, the search those of the
recipe's tasks: 128. The test split is not read before all choices are made.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ovr_ray.images.splitting import split
from ovr_ray.model import average_precision, f1_at, interval
from ovr_ray.recipe import Config, RandomSplit, Recipe, load
from tests.benchmarks.measure import Row, row
from tests.benchmarks.plain import plain_loop

LONG = True
ROOT = Path(__file__).parents[2]
LABELS = Path(os.environ.get("OVR_RAY_SOLAR_CELLS", ROOT.parent / "shared" / "solar-cells" / "data.csv"))
IMAGES, RECIPE = ROOT / "data" / "elpv", ROOT / "jobs" / "recipes" / "solar_cells_cpu.yaml"
OPTIONS = os.environ.get("QUALITY_OPTIONS", "").split()
PLAIN_EPOCHS = 14
"""Epochs of the plain loop."""
GAIN = 0.05
"""Goal: an average F1 that is higher than the plain loop's by this much."""

VARIANTS: dict[str, list[str]] = {
    "winners": [],
    "winners, flips": ["--flip-average"],
    "top 3, flips": ["--top-k", "3", "--flip-average"],
    "refit, flips": ["--from", "refit", "--flip-average"],
}
"""Joint models of one search -> the options of ``combine`` that make them."""


def rows() -> list[Row]:
    """Return a row per split, variant and task, and one for the average over tasks."""
    if lacking := [str(path) for path in (LABELS, IMAGES) if not path.exists()]:
        print(f"quality: skipped, without {', '.join(lacking)} (make demo; OVR_RAY_SOLAR_CELLS=FILE)")
        return []
    seeds = [int(seed) for seed in os.environ.get("QUALITY_SEEDS", "1 2 3").split()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(os.environ.get("QUALITY_FOLDER", place)).absolute()
        result = [each for seed in seeds for each in _split(folder / f"seed-{seed}", seed)]
        folder.joinpath("table.md").write_text(_markdown(result))
    return result


def _split(folder: Path, seed: int) -> list[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(LABELS, sep=";")
    recipe = load(RECIPE, OPTIONS)
    settings = json.loads(json.dumps({"recipe": recipe.dump(), "plain_epochs": PLAIN_EPOCHS}))
    if _once(folder / "settings.json", lambda: settings) != settings:
        raise SystemExit(f"{folder} holds figures of other settings: give another QUALITY_FOLDER, or remove it")
    table["part"] = split(table[list(recipe.tasks)], RandomSplit(val=0.2, test=0.2, seed=seed))
    table.to_csv(folder / "labels.csv", sep=";", index=False)
    ours = _once(folder / "ours.json", lambda: _ours(folder, recipe.data.image_size, seed))
    plain = _once(folder / "plain.json", lambda: _plain(folder, table, recipe, seed))
    result = []
    for variant in VARIANTS:
        here = ours[variant]
        for task in (*recipe.tasks, "average"):
            mine, theirs = here["scores"][task], plain["scores"][task]
            goal = 1 + GAIN / theirs["f1"] if task == "average" else 1.0
            figures = row(f"quality {seed}, {variant}, {task}", "plain loop", 1.0, 1.0, round(goal, 3), 1)
            figures |= {"ratio": round(mine["f1"] / theirs["f1"], 3), "seed": seed, "variant": variant, "task": task}
            figures |= {"ours_s": here["seconds"], "baseline_s": plain["seconds"], "ours": mine, "plain": theirs}
            figures |= {"ours_images": here["images_seen"], "plain_images": plain["images_seen"]}
            result.append(figures | {"ours_pixels": here["image_size"], "plain_pixels": recipe.data.image_size})
    return result


def _once(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier call made and wrote to the file; if there is no such file, make it now."""
    if not file.exists():
        file.write_text(json.dumps(make(), indent=1))
    made: dict[str, Any] = json.loads(file.read_text())
    return made


def _plain(folder: Path, table: pd.DataFrame, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train both tasks at the same time, as trials are: in a process each."""
    began, size = time.monotonic(), recipe.data.image_size
    jobs = [(table, name, task.default, size, seed) for name, task in recipe.tasks.items()]
    with ProcessPoolExecutor(len(jobs), multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(recipe.tasks, pool.map(_loop, *zip(*jobs, strict=True)), strict=True))
    test = table[table.part == "test"]
    probabilities = {task: np.asarray(trained["test"]) for task, trained in found.items()}
    scores = _scores(test, probabilities, dict.fromkeys(recipe.tasks, 0.5))
    images = sum(trained["images"] for trained in found.values())
    return {"seconds": time.monotonic() - began, "images_seen": images, "scores": scores}


def _loop(table: pd.DataFrame, task: str, config: Config, size: int, seed: int) -> dict[str, Any]:
    """Return the test probabilities of the epoch with the best validation F1 at threshold 0.5."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    splits = {name: table[table.part == name] for name in ("train", "val", "test")}
    truth = splits["val"][task].to_numpy()
    epochs = plain_loop(
        splits,
        task,
        IMAGES,
        config.backbone,
        config.weights,
        size=size,
        epochs=PLAIN_EPOCHS,
        batch_size=config.batch_size,
        workers=1,
    )
    best = max(epochs, key=lambda probabilities: f1_at(0.5)(truth, probabilities["val"]))
    return {"test": best["test"].tolist(), "images": PLAIN_EPOCHS * len(splits["train"])}


def _ours(folder: Path, size: int, seed: int) -> dict[str, Any]:
    """Run the commands of the documentation; all choices are made before the test split is read."""
    run = folder / "run"
    overrides = {"name": "run", "storage": folder, "data.labels": folder / "labels.csv", "data.images": IMAGES}
    overrides |= {"data.split": "{column: part}", "search.seed": seed}
    settings = [*(f"{key}={value}" for key, value in overrides.items()), *OPTIONS]
    _command("tune", RECIPE, *(word for setting in settings for word in ("--set", setting)))
    _command("refit", run, "--image-size", size)
    for variant, options in VARIANTS.items():
        place = folder / variant
        place.mkdir(exist_ok=True)
        _command("combine", run, "--output", place / "joint.pt", *options)
    table = pd.read_csv(folder / "labels.csv", sep=";")
    test = table[table.part == "test"]
    test.to_csv(folder / "test.csv", sep=";", index=False)
    return {variant: _scored(folder / variant, run, test) for variant in VARIANTS}


def _scored(place: Path, run: Path, test: pd.DataFrame) -> dict[str, Any]:
    """Predict the test split with a joint model; return its scores, and the time and images that it took."""
    answers = place / "predictions.csv"
    _command("predict", place / "joint.pt", place.parent / "test.csv", "--images", IMAGES, "--output", answers)
    probabilities = pd.read_csv(answers, sep=";")
    chosen = json.loads((place / "winners.json").read_text())
    thresholds = {task: winner["threshold"] for task, winner in chosen.items()}
    scores = _scores(test, {task: probabilities[f"{task}_probability"].to_numpy() for task in thresholds}, thresholds)
    clocks = [run / "search.json"]
    logs = [*run.glob("trials/*/epochs.csv")]
    if place.name.startswith("refit"):
        clocks.append(run / "refit" / "clock.json")
        logs += run.glob("refit/*/epochs.csv")
    counts = [f"train_{count}" for count in ("tn", "fp", "fn", "tp")]
    seen = sum(int(pd.read_csv(log, sep=";")[counts].to_numpy().sum()) for log in logs)
    return {
        "seconds": sum(json.loads(clock.read_text())["seconds"] for clock in clocks),
        "images_seen": seen,
        "image_size": max(winner["config"]["image_size"] for winner in chosen.values()),
        "scores": scores,
    }


def _command(*words: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-m", "ovr_ray.commands.cli", *map(str, words)], env=environment, check=True)


def _scores(
    test: pd.DataFrame, probabilities: dict[str, np.ndarray], thresholds: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Return F1, average precision, and intervals over images, for each task and for the mean over tasks."""
    truth = {task: test[task].to_numpy(float) for task in probabilities}

    def mean_f1(rows: np.ndarray, _: np.ndarray) -> float:
        at = rows.astype(int)
        return float(np.mean([f1_at(thresholds[t])(truth[t][at], probabilities[t][at]) for t in truth]))

    def mean_precision(rows: np.ndarray, _: np.ndarray) -> float:
        at = rows.astype(int)
        return float(np.mean([average_precision(truth[t][at], probabilities[t][at]) for t in truth]))

    scores = {}
    for task in truth:
        both = truth[task], probabilities[task]
        f1, precision = f1_at(thresholds[task]), average_precision
        scores[task] = {"f1": f1(*both), "f1_interval": interval(f1, *both)}
        scores[task] |= {"ap": precision(*both), "ap_interval": interval(precision, *both)}
    rows = np.arange(len(test))
    scores["average"] = {"f1": mean_f1(rows, rows), "f1_interval": interval(mean_f1, rows, rows)}
    scores["average"] |= {"ap": mean_precision(rows, rows), "ap_interval": interval(mean_precision, rows, rows)}
    return scores


def _markdown(rows: list[Row]) -> str:
    lines = [
        "| split | | task | F1 | AP | plain loop: F1 | AP | pixels, ours / plain | images seen | minutes |",
        "|" + "---|" * 10,
    ]
    for each in rows:
        figures = [_figure(each[side], kind) for side in ("ours", "plain") for kind in ("f1", "ap")]
        figures.append(f"{each['ours_pixels']} / {each['plain_pixels']}")
        seen = f"{each['ours_images']:,} / {each['plain_images']:,}"
        minutes = f"{each['ours_s'] / 60:.0f} / {each['baseline_s'] / 60:.0f}"
        lines.append(
            "| " + " | ".join([str(each["seed"]), each["variant"], each["task"], *figures, seen, minutes]) + " |"
        )
    return "\n".join(lines) + "\n"


def _figure(scores: dict[str, Any], kind: str) -> str:
    low, high = scores[f"{kind}_interval"]
    return f"{scores[kind]:.3f} [{low:.3f}, {high:.3f}]"
