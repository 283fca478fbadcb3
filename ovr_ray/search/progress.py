"""The live table: per task, how many trials run and are done, and the best so far with what."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ovr_ray.search.ledger import Ledger, Trial

FIRST = ("backbone", "lr")
"""Config fields that are told before the others."""

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
            self._live = Live(self._table(), console=self._console, refresh_per_second=2)
            self._live.start()
        self._printed = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._live:
            self._live.update(self._table())
        elif time.monotonic() - self._printed > PRINT_EVERY:
            self._console.print(self._table())
            self._printed = time.monotonic()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = trial.config
        failed = self._ledger.trials[config["task"]][config["number"]]
        self._ledger.end(failed, "failed", _last_line(trial.error_file))
        self._console.print(f"[red]{failed.folder.name} failed:[/red] {failed.reason}", highlight=False)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks; nothing of this one is worth keeping

    def _table(self) -> Table:
        return table_of(self._ledger)


def table_of(ledger: Ledger) -> Table:
    """A row a task."""
    table = Table(title=f"{ledger.recipe.name}: {ledger.seconds / 60:.1f} min", title_justify="left")
    for column in ("task", "trials", "running", "done", "stopped early", "failed"):
        table.add_column(column, justify="left" if column == "task" else "right")
    table.add_column(f"best {ledger.metric}", justify="right")
    table.add_column("with", overflow="fold")
    for task, trials in ledger.trials.items():
        count = {status: sum(t.status == status for t in trials) for status in {t.status for t in trials}}
        best = max((t for t in trials if t.best is not None), key=lambda t: t.best or 0, default=None)
        table.add_row(
            task,
            f"{len(trials)}/{ledger.recipe.tasks[task].trials}",
            str(ledger.live(task)),
            str(count.get("finished", 0)),
            str(count.get("stopped", 0)),
            str(count.get("failed", 0) + count.get("diverged", 0)),
            "" if best is None else f"{best.best:.3f}",
            "" if best is None else f"{best.folder.name}: {told(best, ledger)}",
        )
    return table


def told(trial: Trial, ledger: Ledger) -> str:
    """What sets a trial's config apart from the others of its task."""
    varied = ledger.recipe.tasks[trial.task].varied()
    values = {name: getattr(trial.config, name) for name in sorted(varied, key=lambda n: (n not in FIRST, n))}
    texts = (f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return ", ".join(texts)


def _last_line(error_file: str | None) -> str:
    if not error_file or not Path(error_file).exists():
        return "its worker died"
    lines = Path(error_file).read_text().strip().splitlines()
    return lines[-1] if lines else "its worker died"
