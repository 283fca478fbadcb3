"""How far a search is: per task, how many trials run and are done, and the best so far with what."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from ovr_ray.run_folder import RunFolder, refresh
from ovr_ray.search.ledger import Ledger, Trial

FIRST = ("backbone", "lr")
"""Config fields that are told before the others."""

MOST_OF_A_REASON = 500
"""Characters; the whole trace is in the trial's error.txt."""

PRINT_EVERY = 30.0
"""Seconds between two tables where the output is no terminal."""


OUT_OF_TIME = "The time budget is spent; a larger search.time_budget goes on with the rest."


class Progress(tune.Callback):
    """Shows the ledger while the search runs, and keeps the reasons of failures.

    Parameters
    ----------
    ledger : Ledger
    console : Console
    needs_gpu : bool
        Whether trials hold a GPU; a node on which torch sees none is then told, once.
    """

    def __init__(self, ledger: Ledger, console: Console, needs_gpu: bool = False) -> None:
        self._ledger, self._console, self._needs_gpu = ledger, console, needs_gpu
        self._without_gpu: set[str] = set()
        self._live: Live | None = None
        self._printed = 0.0

    def setup(self, **info: Any) -> None:
        """Open the live table, where there is a terminal to draw it on."""
        if self._console.is_terminal:
            self._live = Live(overview(self._ledger), console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        self._printed = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._live:
            self._live.update(overview(self._ledger))
        elif time.monotonic() - self._printed > PRINT_EVERY:
            self._console.print(overview(self._ledger))
            self._printed = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        node = result.get("hostname", "")
        if self._needs_gpu and result.get("device") == "cpu" and node not in self._without_gpu:
            self._without_gpu.add(node)
            told = f"Trials on {node} hold a GPU but train on the CPU: torch sees none there. Is the driver too old?"
            self._console.print(told, style="yellow", highlight=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = trial.config
        failed = self._ledger.trials[config["task"]][config["number"]]
        self._ledger.end(failed, "failed", _reason(trial.error_file))
        told = f"{failed.folder.name} failed (all of it: {failed.folder.path / 'error.txt'}): {failed.reason}"
        self._console.print(told, style="red", markup=False, highlight=False)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks; nothing of this one is worth keeping


def overview(ledger: Ledger) -> RenderableType:
    """A row a task (stopped: early, by its scheduler), and below what the best trial of each was trained with."""
    table = Table(title=f"{ledger.recipe.name}: {ledger.seconds / 60:.1f} min", title_justify="left", box=SIMPLE_HEAD)
    for column in ("task", "trials", "running", "done", "stopped", "failed", f"best {ledger.metric}"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for task, row in ledger.counts().iterrows():
        best = "" if math.isnan(row.best) else f"{row.best:.3f}"
        counts = (row.running, row.finished, row.stopped, row.failed + row.diverged)
        table.add_row(str(task), f"{row.begun:g}/{row.budget:g}", *(f"{count:g}" for count in counts), best)
    lines = []
    for task, trials in ledger.trials.items():
        trial = max((trial for trial in trials if trial.scores), key=lambda trial: trial.best or 0, default=None)
        if trial:
            lines.append(f"best of {task}: {trial.folder.name} {_told(trial, ledger)}".rstrip())
    return Group(table, *lines)


def read_ledger(run: RunFolder) -> Ledger:
    """The ledger of a run, from its folder alone: while it runs, from another machine, or long after.

    Unfinished trials are live in it if the search gave a sign of life lately.
    """
    refresh(run.path)
    recipe = run.recipe()
    ledger = Ledger(run, recipe, recipe.tasks)
    for trials in ledger.trials.values():
        for trial in trials:
            trial.live = trial.status == "unfinished" and ledger.is_alive
    return ledger


def status(ledger: Ledger) -> RenderableType:
    """The live table of a ledger that was read, and what a person may do next."""
    lines = []
    counts = ledger.counts()
    if ledger.is_alive:
        lines.append("A search is running.")
    elif ledger.complete():
        lines.append(f"Complete; ovr-ray combine {ledger.run.path} makes the joint model.")
    elif ledger.out_of_time:
        lines.append(OUT_OF_TIME)
    else:
        waiting = int((counts.budget - counts.begun).clip(lower=0).sum() + counts.unfinished.sum())
        lines.append(f"Not running; {waiting} trials are left: ovr-ray tune with the same recipe goes on.")
    lost = (trial for trials in ledger.trials.values() for trial in trials if trial.status in ("failed", "diverged"))
    lines += [f"{trial.folder.name} {trial.status}: {trial.reason}" for trial in lost]
    return Group(overview(ledger), *lines)


def _told(trial: Trial, ledger: Ledger) -> str:
    """What sets a trial's config apart from the others of its task."""
    varied = ledger.recipe.tasks[trial.task].varied()
    values = {name: getattr(trial.config, name) for name in sorted(varied, key=lambda n: (n not in FIRST, n))}
    texts = (f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return f"({', '.join(texts)})" if values else ""


def _reason(error_file: str | None) -> str:
    """The last exception of Ray's file of traces, without the trace."""
    lines = Path(error_file).read_text().strip().splitlines() if error_file and Path(error_file).exists() else []
    named = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(\([\w.]+\))?: ", line)]
    return "\n".join(lines[named[-1] if named else -1 :])[:MOST_OF_A_REASON] or "its worker died"
