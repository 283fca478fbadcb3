"""The time from a command to its help, and to a trial's first step, against the time that Ray and torch alone take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from data.synthetic import generate
from tests.benchmarks.measure import Row, in_turn, row
from tests.support import BACKBONE

LONG = False
IMAGES, SIZE, RUNS = 2000, 128, 5
FIRST_STEP, HELP = 12.0, 0.3
"""Goals, in seconds on two cores."""

BARE = """
import ray
ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
def work():
    import torch, torchvision
    torch.nn.Linear(1, 1)(torch.zeros(1, 1)).backward()
ray.get(ray.remote(work).remote())
"""


def rows() -> list[Row]:
    """Compare both commands on 2,000 drawn images, decoded before."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generate(folder, count=IMAGES, size=150)
        recipe = _recipe(folder)
        _run("ovr_ray.commands.cli", "prepare", str(recipe))
        first: list[float] = []
        works: dict[str, Callable[[], object]] = {
            "first step": lambda: first.append(_first_step(folder, recipe)),
            "bare Ray": partial(subprocess.run, [sys.executable, "-c", BARE], check=True),
            "help": partial(_run, "ovr_ray.commands.cli", "--help"),
            "typer": partial(subprocess.run, [sys.executable, "-c", "import typer"], check=True),
        }
        taken = in_turn(works, runs=RUNS, warm=1)
        step = sorted(first[1:])[RUNS // 2]
        more = {"images": IMAGES}
        return [
            row("start to first step", "bare Ray, torch in one task", step, taken["bare Ray"], 0.6, RUNS, **more)
            | {"goal_s": FIRST_STEP},
            row("--help", "import typer", taken["help"], taken["typer"], 0.6, RUNS) | {"goal_s": HELP},
        ]


def _recipe(folder: Path) -> Path:
    default = {"backbone": BACKBONE, "weights": None, "batch_size": 32}
    plain = {
        "name": "startup",
        "data": {"labels": str(folder / "data.csv"), "images": str(folder), "image_size": SIZE},
        "tasks": {task: {"trials": 1, "default": default} for task in ("crack", "inactive")},
        "search": {"max_epochs": 1, "grace_epochs": 1},
        "storage": str(folder / "runs"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain))
    return folder / "recipe.yaml"


def _first_step(folder: Path, recipe: Path) -> float:
    """Return the seconds until a trial began its first step: the end of its first epoch, less the epoch's time."""
    shutil.rmtree(folder / "runs" / "startup", ignore_errors=True)
    began = time.time()
    _run("ovr_ray.commands.cli", "tune", str(recipe))
    epochs = [pd.read_csv(file, sep=";").iloc[0] for file in (folder / "runs").rglob("epochs.csv")]
    counted = [f"{split}_{count}" for split in ("train", "val") for count in ("tn", "fp", "fn", "tp")]
    return min(epoch.time - epoch[counted].sum() / epoch.images_per_s for epoch in epochs) - began


def _run(*command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-m", *command], env=environment, check=True, stdout=subprocess.DEVNULL)
