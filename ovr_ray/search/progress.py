"""The progress of a search, as a table: per task the number of trials by status, and the best trial so far."""

from __future__ import annotations

import math
import time
from typing import Any, Final

from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ovr_ray import ray_quirks
from ovr_ray.recipe import Metric
from ovr_ray.runs import RunFolder, Status
from ovr_ray.search.ledger import Ledger, Trial
from ovr_ray.search.messages import TrialKey
from ovr_ray.storage import refresh

FIRST: Final = ("backbone", "lr")
"""Config fields that are shown before the others."""

SHORT: Final[dict[Metric, str]] = {"average_precision": "AP", "f1": "F1", "f1_at_half": "F1 at 0.5"}
"""Short names of the metrics, for tables of 80 columns."""

PRINT_EVERY: Final = 30.0
"""Seconds between two tables if the output is no terminal."""

DRAW_EVERY: Final = 0.5
"""Seconds between two updates on a terminal; counting all trials at every report would slow down large searches."""

OUT_OF_TIME: Final = "The time budget is spent; a larger search.time_budget resumes the rest."


class Progress(tune.Callback):
    """Shows the ledger while the search runs, and reports crashes.

    Parameters
    ----------
    ledger : Ledger
    console : Console
    needs_gpu : bool
        Whether trials hold a GPU; a node on which torch sees none is then reported once.
    """

    def __init__(self, ledger: Ledger, console: Console, needs_gpu: bool = False) -> None:
        self._ledger, self._console, self._needs_gpu = ledger, console, needs_gpu
        self._without_gpu: set[str] = set()
        self._micro_batches: dict[str, int] = {}
        self._live: Live | None = None
        self._shown = 0.0

    def setup(self, **info: Any) -> None:
        """Open the live table if the output is a terminal."""
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
        count, name = result.get("parts", 1), trial.trial_id
        if count > self._micro_batches.get(name, 1):
            self._micro_batches[name] = count
            message = f"{self._trial(trial).folder.name}: out of memory; resumes with batches in {count} micro-batches"
            self._console.print(message, style="yellow", highlight=False)
        node = result.get("hostname", "")
        if self._needs_gpu and result.get("device") == "cpu" and node not in self._without_gpu:
            self._without_gpu.add(node)
            message = f"Trials on {node} hold a GPU but train on the CPU: torch sees none there. Is the driver too old?"
            self._console.print(message, style="yellow", highlight=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        crashed = self._trial(trial)
        is_over = crashed.status == Status.FAILED
        how = "failed" if is_over else f"crashed in epoch {crashed.epoch + 1}, is started again"
        trace = ray_quirks.trace_file(trial, crashed.folder.path)
        message = f"{crashed.folder.name} {how} (whole trace: {trace}): {crashed.reason}"
        self._console.print(message, style="red" if is_over else "yellow", markup=False, highlight=False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ray_quirks.forget_history(trial)  # the ledger has what is needed of it

    def _trial(self, trial: Any) -> Trial:
        return self._ledger.trial(TrialKey.of(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks; nothing of this one is needed


def overview(ledger: Ledger) -> RenderableType:
    """Return a table with one row per task, and below it the config of each task's best trial.

    *stopped* means early, by the scheduler; *best* is the best validation score.
    """
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
            lines.append(f"best of {task}: {trial.folder.name} {_varied(trial, ledger)}".rstrip())
    return Group(table, *lines)


def read_ledger(run: RunFolder) -> Ledger:
    """Return the ledger of a run, from its folder alone: while it runs, from another machine, or later.

    Unfinished trials count as running if the search wrote a heartbeat lately.
    """
    refresh(run.path)
    recipe = run.recipe()
    ledger = Ledger(run, recipe, recipe.tasks)
    for trial in ledger.every():
        trial.live = trial.status == Status.UNFINISHED and ledger.clock.is_alive
    return ledger


def status(ledger: Ledger) -> RenderableType:
    """Return the table of a ledger that was read from a folder, and what to do next."""
    lines = []
    if ledger.clock.is_alive:
        lines.append("A search is running.")
    elif ledger.complete():
        lines.append(f"Complete; ovr-ray combine {ledger.run.path} makes the joint model.")
    elif ledger.out_of_time:
        lines.append(OUT_OF_TIME)
    else:
        waiting = sum(ledger.left(task) for task in ledger.tasks)
        lines.append(f"Not running; {waiting} trials are left: ovr-ray tune with the same recipe resumes.")
    lost = [trial for trial in ledger.every() if trial.status.is_lost]
    lines += [f"{trial.folder.name} {trial.status}: {trial.reason}" for trial in lost]
    return Group(overview(ledger), *map(Text, lines))  # reasons may hold what Rich takes for markup


def _varied(trial: Trial, ledger: Ledger) -> str:
    """Return the values of the config fields that the task's search varies."""
    varied = ledger.recipe.tasks[trial.task].varied()
    values = {name: getattr(trial.config, name) for name in sorted(varied, key=lambda n: (n not in FIRST, n))}
    texts = (f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return f"({', '.join(texts)})" if values else ""
