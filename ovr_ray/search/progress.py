"""How far a search is: per task, how many trials run and are done, and the best so far with what."""

from __future__ import annotations

import math
import time
from typing import Any

from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ovr_ray.run_folder import RunFolder, refresh
from ovr_ray.search.ledger import Ledger, Trial

FIRST = ("backbone", "lr")
"""Config fields that are told before the others."""

SHORT = {"average_precision": "AP", "f1": "F1", "f1_at_half": "F1 at 0.5"}
"""What ``search.metric`` is called where there are 80 columns for all."""

PRINT_EVERY = 30.0
"""Seconds between two tables where the output is no terminal."""

DRAW_EVERY = 0.5
"""And where it is one: to count all trials whenever one tells something would take longer with each trial."""

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
        self._parts: dict[str, int] = {}
        self._live: Live | None = None
        self._shown = 0.0

    def setup(self, **info: Any) -> None:
        """Open the live table, where there is a terminal to draw it on."""
        if self._console.is_terminal:
            self._live = Live(overview(self._ledger), console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        self._shown = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._shown < (DRAW_EVERY if self._live else PRINT_EVERY):
            return
        self._shown = time.monotonic()
        (self._live.update if self._live else self._console.print)(overview(self._ledger))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        parts, name = result.get("parts", 1), trial.trial_id
        if parts > self._parts.get(name, 1):
            self._parts[name] = parts
            told = f"{self._trial(trial).folder.name}: out of memory; goes on with batches in {parts} parts"
            self._console.print(told, style="yellow", highlight=False)
        node = result.get("hostname", "")
        if self._needs_gpu and result.get("device") == "cpu" and node not in self._without_gpu:
            self._without_gpu.add(node)
            told = f"Trials on {node} hold a GPU but train on the CPU: torch sees none there. Is the driver too old?"
            self._console.print(told, style="yellow", highlight=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        crashed = self._trial(trial)
        how = "failed" if crashed.status == "failed" else f"crashed in epoch {crashed.epoch + 1}, is tried again"
        trace = crashed.folder.path.with_name(trial.relative_logdir) / "error.txt"  # Tune's folder of a further try
        told = f"{crashed.folder.name} {how} (all of it: {trace}): {crashed.reason}"
        style = "red" if crashed.status == "failed" else "yellow"
        self._console.print(told, style=style, markup=False, highlight=False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        kept = trial.run_metadata  # Tune holds it to the end, thrice; the ledger has what is needed of it
        kept.metric_analysis, kept.metric_n_steps = {}, {}

    def _trial(self, trial: Any) -> Trial:
        return self._ledger.trials[trial.config["task"]][trial.config["number"]]

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks; nothing of this one is worth keeping


def overview(ledger: Ledger) -> RenderableType:
    """A row a task (stopped: early, by its scheduler; best: on validation), and below its best trial's config."""
    table = Table(
        title=f"{ledger.recipe.name}: {ledger.clock.seconds / 60:.1f} min", title_justify="left", box=SIMPLE_HEAD
    )
    best_one = f"best {SHORT[ledger.recipe.search.metric]}"
    for column in ("task", "trials", "running", "done", "stopped", "failed", best_one):
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
            trial.live = trial.status == "unfinished" and ledger.clock.is_alive
    return ledger


def status(ledger: Ledger) -> RenderableType:
    """The live table of a ledger that was read, and what a person may do next."""
    lines = []
    counts = ledger.counts()
    if ledger.clock.is_alive:
        lines.append("A search is running.")
    elif ledger.complete():
        lines.append(f"Complete; ovr-ray combine {ledger.run.path} makes the joint model.")
    elif ledger.out_of_time:
        lines.append(OUT_OF_TIME)
    else:
        waiting = int((counts.budget - counts.begun).clip(lower=0).sum() + counts.unfinished.sum())
        lines.append(f"Not running; {waiting} trials are left: ovr-ray tune with the same recipe goes on.")
    lost = [trial for trials in ledger.trials.values() for trial in trials if trial.status in ("failed", "diverged")]
    lines += [f"{trial.folder.name} {trial.status}: {trial.reason}" for trial in lost]
    return Group(overview(ledger), *map(Text, lines))  # reasons may hold what Rich takes for markup


def _told(trial: Trial, ledger: Ledger) -> str:
    """What sets a trial's config apart from the others of its task."""
    varied = ledger.recipe.tasks[trial.task].varied()
    values = {name: getattr(trial.config, name) for name in sorted(varied, key=lambda n: (n not in FIRST, n))}
    texts = (f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return f"({', '.join(texts)})" if values else ""
