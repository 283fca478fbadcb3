"""Searches of more and more trials, tasks and nodes, whose trials only sleep: the driver's time between two trials.

Everything but the training is real: Tune, Optuna, early stopping, the ledger, the live table, the run folder. One
search alone: ``python -m tests.benchmarks.growth TRIALS TASKS NODES [--scheduler NAME] [--profile FILE]``; FILE gets
the profile of cProfile.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console

from data.synthetic import generate
from ovr_ray import reporting, search
from ovr_ray.images import ImageSet
from ovr_ray.recipe import Recipe, parse
from ovr_ray.runs import RunFolder
from ovr_ray.search import run as search_run
from ovr_ray.search.trial import SearchContext, _report
from tests.benchmarks.measure import Row, row, seconds
from tests.faults.harness import cluster
from tests.support import plain_recipe
from tests.support import rows as rows_of

LONG = True
CASES = [(trials, 2, 1) for trials in (10, 100, 1000)]
CASES += [(100, tasks, 1) for tasks in (8, 32)] + [(100, 2, nodes) for nodes in (2, 4, 8)]
"""Trials, tasks and nodes of each search."""
BOTH = [(48, 2, 4), (48, 1, 4)]
"""Trials, tasks and nodes of the searches in which halving must keep its slots as busy as ASHA does."""
SLOTS = 2
"""CPUs that each node declares; they need not exist, because sleeping uses none."""
EPOCH, EPOCHS, GOAL = 0.25, 4, 0.5
"""Seconds of an epoch, epochs of a trial that is not stopped, and seconds that a slot may be idle per trial."""
COUNTS = ("tn", "fp", "fn", "tp")


def rows() -> list[Row]:
    """Run one search per case, each with a cluster and a driver of its own."""
    return [_row(*case) for case in CASES] + [_halved(*case) for case in BOTH]


def _halved(trials: int, tasks: int, nodes: int) -> Row:
    """Compare the wall time that a slept second takes; each side is one search."""
    ours, theirs = (_of(trials, tasks, nodes, scheduler) for scheduler in ("halving", "asha"))
    mine, other = (found["wall_s"] / (EPOCH * found["epochs"]) for found in (ours, theirs))
    name = f"halving, {trials} trials, {tasks} tasks, {SLOTS * nodes} slots: wall time per second of training"
    return row(name, "asha", mine, other, 0.9, 1, halving=ours, asha=theirs)


def _of(trials: int, tasks: int, nodes: int, scheduler: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.growth", *map(str, (trials, tasks, nodes))]
    command += ["--scheduler", scheduler]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]
    )
    # minutes pass until the next one, which may run out of memory
    print(f"{trials} trials, {tasks} tasks, {nodes} nodes, {scheduler}: {found}", file=sys.stderr)
    return found


def _row(trials: int, tasks: int, nodes: int) -> Row:
    found = _of(trials, tasks, nodes, "asha")
    name = f"{trials} trials, {tasks} tasks, {nodes} nodes"
    idle, asleep = found.pop("idle_s"), found.pop("asleep_s")
    goal = asleep / (asleep + GOAL)
    return row(name, "perfectly packed", asleep + idle, asleep, round(goal, 3), 1, **found) | {"goal_idle_s": GOAL}


def sleep_as_a_trial(config: dict[str, Any], context: SearchContext, images: ImageSet) -> None:
    """Sleep, and report and write what a trial does, in place of :func:`ovr_ray.search.trial.train_trial`."""
    folder, began = context.run.trial(config["task"], config["number"]), time.time()
    scores = np.random.default_rng([config["number"]]).random((EPOCHS, 4)).tolist()
    written = rows_of(folder.epochs())
    for epoch, (f1, half, precision, loss) in list(enumerate(scores, 1))[len(written) : config["epochs"]]:
        time.sleep(EPOCH)
        counts = {f"{split}_{count}": 10 for split in ("train", "val") for count in COUNTS}
        metrics = {"epoch": epoch, "lr": config["lr"], "images_per_s": 100.0, "train_loss": loss, "val_loss": loss}
        metrics |= counts | {"val_f1": f1, "threshold": 0.5, "val_f1_at_half": half, "val_average_precision": precision}
        metrics |= {"device": "cpu", "parts": 1}
        written.append(metrics | {"time": time.time(), "began": began, "slot": os.getpid()})
        folder.write_epochs(written)
        _report(metrics)


def measured(
    trials: int, tasks: int, nodes: int, scheduler: str = "asha", profile: str | None = None
) -> dict[str, Any]:
    """Return the figures of one search, in seconds and megabytes.

    ``idle_s`` and ``asleep_s`` are means per trial. ``idle_s`` is the time that a slot waits from the end of a trial to
    the first epoch of the next one, and at reports; the start of its process is left out. ``wall_s`` counts from the
    begin of the first trial. ``wall_beyond_packed_s`` is, per trial, the part of it that a perfect packing on all slots
    would save. ``driver_mb`` is the driver's peak, and ``grown_mb`` is how much it grew after the imports.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ovr-") as place,
        Path(os.devnull).open("w") as nowhere,
        cluster(Path(place, "ray"), nodes, SLOTS) as ours,
    ):
        generate(Path(place), count=80, size=40)
        os.environ["RAY_ADDRESS"] = ours.address
        watched = Console(file=nowhere, force_terminal=True)
        before, began = _peak_mb(), time.time()
        profiler = cProfile.Profile()
        with patch.object(search_run, "train_trial", sleep_as_a_trial), profiler if profile else nullcontext():
            run = search.tune(_recipe(Path(place), trials, tasks, scheduler), console=watched)
        total, peak = time.time() - began, _peak_mb()
        if profile:
            profiler.dump_stats(profile)
        return _slots(run, SLOTS * nodes) | {
            "total_s": round(total, 2),
            "driver_mb": peak,
            "grown_mb": peak - before,
            "status_s": round(seconds(lambda: Console(quiet=True).print(search.status(search.read_ledger(run)))), 3),
            "report_s": round(seconds(lambda: reporting.report(run)), 3),
            "report_mb": round((run.path / "report.html").stat().st_size / 1e6, 1),
        }


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def _recipe(place: Path, trials: int, tasks: int, scheduler: str) -> Recipe:
    searched = {"scheduler": scheduler, "max_epochs": EPOCHS, "grace_epochs": 1, "reduction": 2}
    plain = plain_recipe(place, place / "runs", search=searched)
    task = plain["tasks"]["crack"]
    task["space"] |= {"weight_decay": {"loguniform": [1e-5, 1e-2]}, "batch_size": {"choice": [16, 32]}}
    named = {f"task{number:02}": {"column": "crack", **task} for number in range(tasks)}
    for number, name in enumerate(named):
        named[name]["trials"] = trials // tasks + (number < trials % tasks)
    return parse(plain | {"tasks": named})


def _slots(run: RunFolder, declared: int) -> dict[str, Any]:
    """Return how long slots existed and slept; a slot exists from its first trial's begin to its last trial's end.

    There may be fewer slots than declared.
    """
    epochs = search.read_ledger(run).history()
    by_slot = epochs.groupby("slot")
    there = (by_slot.time.max() - by_slot.began.min()).sum()
    trials = len(epochs.groupby(["task", "number"]))
    wall = epochs.time.max() - epochs.began.min()
    asleep = len(epochs) * EPOCH
    return {
        "idle_s": round((there - asleep) / trials, 3),
        "asleep_s": round(asleep / trials, 3),
        "wall_s": round(wall, 2),
        "wall_beyond_packed_s": round((wall - asleep / declared) / trials, 3),
        "slots": f"{len(by_slot)} of {declared}",
        "epochs": len(epochs),
    }


def main() -> None:
    """Print the figures of one search as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__)
    for name in ("trials", "tasks", "nodes"):
        parser.add_argument(name, type=int)
    parser.add_argument("--scheduler", default="asha")
    parser.add_argument("--profile", metavar="FILE")
    print(json.dumps(measured(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
