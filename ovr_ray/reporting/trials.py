"""The trials of a task: their table, their learning curves, and their scores over the epochs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative

from ovr_ray.model import Confusion
from ovr_ray.recipe import Metric, Split
from ovr_ray.runs import Status
from ovr_ray.search import Ledger, Trial, rungs

RUNNING: Final = "running"
"""The word for a live trial, whatever its status."""

MARKS: Final[Mapping[str, str]] = {
    RUNNING: "circle-open",
    Status.UNFINISHED: "circle-open",
    Status.FINISHED: "circle",
    Status.STOPPED: "x",
    Status.DIVERGED: "triangle-down",
    Status.FAILED: "square",
}
"""Plotly's symbol for a trial's last epoch, by the trial's status."""

SCORE_NAMES: Final[Mapping[Metric, str]] = {
    "f1": "validation F1",
    "f1_at_half": "validation F1 at 0.5",
    "average_precision": "validation AP",
}
"""Names on the page of the scores that trials are compared by."""

CURVES: Final[tuple[Split, ...]] = ("train", "val")
"""The splits that every epoch is scored on."""


@dataclass(frozen=True)
class TrialTable:
    """The table of a task's trials.

    Attributes
    ----------
    columns : list of str
        The first is ``trial``, the trial's name.
    rows : list of list
        One row per trial, in the order of the columns. A value is None if the trial has none.
    """

    columns: list[str]
    rows: list[list[Any]]


def table(ledger: Ledger, task: str) -> TrialTable:
    """Return the trials of a task: status, best epoch, and the fields that the search space varies."""
    varied = _varied(ledger, task)
    columns = ["trial", "status", score_name(ledger), "best epoch", "epochs", *varied, "reason"]
    rows = []
    for trial in ledger.trials[task]:
        best = max(trial.scores, key=trial.scores.__getitem__, default=None)
        values = [getattr(trial.config, name) for name in varied]
        rows.append([trial.folder.name, _status(trial), trial.best, best, trial.epoch, *values, trial.reason])
    return TrialTable(columns, rows)


def score_name(ledger: Ledger) -> str:
    """Return the name on the page of the score that trials are compared by."""
    return SCORE_NAMES[ledger.recipe.search.metric]


def _status(trial: Trial) -> str:
    return RUNNING if trial.live else trial.status.value


def _varied(ledger: Ledger, task: str) -> list[str]:
    return list(ledger.recipe.tasks[task].varied())


def epochs(history: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the loss and the ten metrics (at probability 0.5) of every epoch, as JSON for the page's script.

    Parameters
    ----------
    history : DataFrame
        Epochs of one task, from :meth:`ovr_ray.search.Ledger.history`, with the trial's name in ``trial``.

    Returns
    -------
    dict
        Name of a trial -> ``epoch``, a list, and ``train`` and ``val``, each a dict of metric -> list.
    """
    curves: dict[str, dict[str, Any]] = {}
    for row in history.to_dict("records"):
        known = curves.setdefault(row["trial"], {"epoch": []} | {split: defaultdict(list) for split in CURVES})
        known["epoch"].append(row["epoch"])
        for split in CURVES:
            scores = {"loss": row[f"{split}_loss"]} | confusion(row, split).metrics()
            for name, value in scores.items():
                known[split][name].append(short(value))
    return dict(sorted(curves.items()))


def short(value: float) -> float | None:
    """Return a number with the five digits that a plot can show; None if it is not finite, which JSON cannot say."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def confusion(row: Mapping[Any, Any], split: Split) -> Confusion:
    """Return the confusion counts of an epoch on one split."""
    return Confusion(*(int(row[f"{split}_{name}"]) for name in ("tn", "fp", "fn", "tp")))


def stopping(ledger: Ledger, task: str) -> go.Figure:
    """Return every trial's score over its epochs; dotted lines mark the rungs of early stopping.

    Trials of the same colour are one trace, with a gap after each: a page with a trace per trial is slow.
    """
    figure = go.Figure()
    scored = [trial for trial in ledger.trials[task] if trial.scores]
    for first, color in enumerate(qualitative.D3[: len(scored)]):
        same = scored[first :: len(qualitative.D3)]
        x, y, symbols, sizes, names = zip(*(point for trial in same for point in _points(trial)), strict=True)
        figure.add_scatter(
            x=x,
            y=y,
            text=names,
            hovertemplate="%{x}, %{y}<extra>%{text}</extra>",
            mode="lines+markers",
            marker={"symbol": symbols, "size": sizes},
            line={"width": 1.5, "color": color},
        )
    for rung in rungs(ledger.recipe.search):
        figure.add_vline(rung, line={"dash": "dot", "width": 1})
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="epoch")
    return figure.update_yaxes(title=score_name(ledger))


def _points(trial: Trial) -> Iterator[tuple[int | None, float | None, str, int, str]]:
    """Yield x, y, symbol, size and name of every epoch of a trial, then a gap."""
    name = f"{trial.folder.name} ({_status(trial)})"
    for epoch, score in trial.scores.items():
        symbol, size = (MARKS[_status(trial)], 9) if epoch == trial.epoch else ("circle", 4)
        yield epoch, short(score), symbol, size, name
    yield None, None, "circle", 0, ""
