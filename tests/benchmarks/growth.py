"""Searches of ever more trials, tasks and nodes whose trials only sleep: what the driver takes between two trials.

Everything but the training is real: Tune, Optuna, ASHA, the ledger, the live table, the run folder. One search alone:
``python -m tests.benchmarks.growth TRIALS TASKS NODES [--profile FILE]``, FILE being cProfile's.
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

import numpy as np
from rich.console import Console

from data.synthetic import generate
from ovr_ray import reporting, search
from ovr_ray.images import ImageSet
from ovr_ray.recipe import Recipe, parse
from ovr_ray.run import RunFolder
from ovr_ray.search import run as search_run
from ovr_ray.search.trial import Job, _report
from tests.benchmarks.measure import Row, row, seconds
from tests.support import plain_recipe
from tests.faults.harness import cluster

LONG = True
CASES = [(trials, 2, 1) for trials in (10, 100, 1000)]
CASES += [(100, tasks, 1) for tasks in (8, 32)] + [(100, 2, nodes) for nodes in (2, 4, 8)]
"""Trials, tasks and nodes."""
SLOTS = 2
"""Of a node: CPUs that are declared, not there; sleeping takes none."""
EPOCH, EPOCHS, GOAL = 0.25, 4, 0.5
"""Seconds; epochs of a trial that is not stopped; seconds that a slot may be without work, a trial."""
COUNTS = ("tn", "fp", "fn", "tp")


def rows() -> list[Row]:
    """One search a case, each with a cluster and a driver of its own."""
    return [_row(*case) for case in CASES]


def _row(trials: int, tasks: int, nodes: int) -> Row:
    command = [sys.executable, "-m", "tests.benchmarks.growth", *map(str, (trials, tasks, nodes))]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    name = f"{trials} trials, {tasks} tasks, {nodes} nodes"
    print(f"{name}: {told}", file=sys.stderr)  # minutes pass until the next one, which may find no memory left
    idle, asleep = told.pop("idle_s"), told.pop("asleep_s")
    goal = asleep / (asleep + GOAL)
    return row(name, "perfectly packed", asleep + idle, asleep, round(goal, 3), 1, **told) | {"goal_idle_s": GOAL}


def sleep_as_a_trial(config: dict[str, Any], job: Job, images: ImageSet) -> None:
    """Report and write what a trial does, in place of :func:`ovr_ray.search.trial.train_trial`."""
    folder, began = job.run.trial(config["task"], config["number"]), time.time()
    scores = np.random.default_rng([config["number"]]).random((EPOCHS, 4)).tolist()
    written: list[dict[str, Any]] = []
    for epoch, (f1, half, precision, loss) in enumerate(scores, 1):
        time.sleep(EPOCH)
        counts = {f"{part}_{count}": 10 for part in ("train", "val") for count in COUNTS}
        metrics = {"epoch": epoch, "lr": config["lr"], "images_per_s": 100.0, "train_loss": loss, "val_loss": loss}
        metrics |= counts | {"val_f1": f1, "threshold": 0.5, "val_f1_at_half": half, "val_average_precision": precision}
        metrics |= {"device": "cpu", "parts": 1}
        written.append(metrics | {"time": time.time(), "began": began, "slot": os.getpid()})
        folder.write_epochs(written)
        _report(metrics)


def measured(trials: int, tasks: int, nodes: int, profile: str | None = None) -> dict[str, Any]:
    """Figures of one search; seconds, of which ``idle_s`` and ``asleep_s`` are a slot's, a trial.

    ``idle_s`` is what a slot waits from the end of its trial to the next one's first epoch, and at reports: all but
    the start of its process. ``wall_s`` counts from the first trial's begin; ``wall_beyond_packed_s`` is what all slots
    would not have needed of it, a trial; ``driver_mb`` is the peak, ``grown_mb`` what of it came after the imports.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ovr-") as place,
        Path(os.devnull).open("w") as nowhere,
        cluster(Path(place, "ray"), nodes, SLOTS) as ours,
    ):
        generate(Path(place), count=80, size=40)
        os.environ["RAY_ADDRESS"] = ours.address
        search_run.train_trial = sleep_as_a_trial
        watched = Console(file=nowhere, force_terminal=True)
        before, began = _peak_mb(), time.time()
        with cProfile.Profile() if profile else nullcontext() as profiler:
            run = search.tune(_recipe(Path(place), trials, tasks), console=watched)
        total, peak = time.time() - began, _peak_mb()
        if profiler:
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


def _recipe(place: Path, trials: int, tasks: int) -> Recipe:
    plain = plain_recipe(place, place / "runs", search={"max_epochs": EPOCHS, "grace_epochs": 1, "reduction": 2})
    task = plain["tasks"]["crack"]
    task["space"] |= {"weight_decay": {"loguniform": [1e-5, 1e-2]}, "batch_size": {"choice": [16, 32]}}
    named = {f"task{number:02}": {"column": "crack", **task} for number in range(tasks)}
    for number, name in enumerate(named):
        named[name]["trials"] = trials // tasks + (number < trials % tasks)
    return parse(plain | {"tasks": named})


def _slots(run: RunFolder, declared: int) -> dict[str, Any]:
    """How long each was there, and asleep, from its first trial's begin to its last one's end; not all may ever be."""
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
    """Print one search's figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__)
    for name in ("trials", "tasks", "nodes"):
        parser.add_argument(name, type=int)
    parser.add_argument("--profile", metavar="FILE")
    print(json.dumps(measured(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
