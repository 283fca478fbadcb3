"""The live table: per task, how many trials run and are done, and the best so far with what."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from ovr_ray.search.ledger import Ledger, Trial

FIRST = ("backbone", "lr")
"""Config fields that are told before the others."""

MOST_OF_A_REASON = 500
"""Characters; the whole trace is in the trial's error.txt."""

PRINT_EVERY = 30.0
"""Seconds between two tables where the output is no terminal."""


class Progress(tune.Callback):
    """Shows the ledger while the search runs, and keeps the reasons of failures."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger, self._console = ledger, console
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
    lines = []
    for task, trials in ledger.trials.items():
        count = Counter(trial.status for trial in trials)
        best = max((trial for trial in trials if trial.scores), key=lambda trial: trial.best or 0, default=None)
        table.add_row(
            task,
            f"{len(trials)}/{ledger.recipe.tasks[task].trials}",
            str(ledger.live(task)),
            str(count["finished"]),
            str(count["stopped"]),
            str(count["failed"] + count["diverged"]),
            f"{best.best:.3f}" if best else "",
        )
        if best:
            lines.append(f"best of {task}: {best.folder.name} {_told(best, ledger)}".rstrip())
    return Group(table, *lines)


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
