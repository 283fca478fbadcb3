"""The trials of a task: their table, their learning curves, and their scores over the hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import plot_parallel_coordinate, plot_slice

from ovr_ray.model import Confusion
from ovr_ray.recipe import Choice, Metric, Split
from ovr_ray.runs import Status
from ovr_ray.search import Ledger, TaskSpace, Trial, rungs

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


@dataclass(frozen=True)
class HyperparameterFigures:
    """The scores of all trials over the varied fields.

    Attributes
    ----------
    parallel : go.Figure
        All fields in parallel coordinates.
    slices : go.Figure
        One plot per field.
    """

    parallel: go.Figure
    slices: go.Figure


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
    for name, rows in history.groupby("trial"):
        curves[str(name)] = {"epoch": rows.epoch.tolist()} | {split: _curves(rows, split) for split in CURVES}
    return curves


def _curves(rows: pd.DataFrame, split: Split) -> dict[str, list[float]]:
    metrics = pd.DataFrame([confusion.metrics() for confusion in confusions(rows, split)])
    return {"loss": rows[f"{split}_loss"].tolist()} | {str(name): metrics[name].tolist() for name in metrics}


def confusions(rows: pd.DataFrame, split: Split) -> list[Confusion]:
    """Return the confusion counts of every epoch on one split."""
    counts = rows[[f"{split}_{name}" for name in ("tn", "fp", "fn", "tp")]].itertuples(index=False)
    return [Confusion(*map(int, row)) for row in counts]


def stopping(ledger: Ledger, task: str) -> go.Figure:
    """Return every trial's score over its epochs; dotted lines mark the rungs of early stopping."""
    figure = go.Figure()
    for trial in ledger.trials[task]:
        if trial.scores:
            status, before = _status(trial), len(trial.scores) - 1
            figure.add_scatter(
                x=list(trial.scores),
                y=list(trial.scores.values()),
                mode="lines+markers",
                name=f"{trial.folder.name} ({status})",
                marker={"symbol": [*["circle"] * before, MARKS[status]], "size": [*[4] * before, 9]},
                line={"width": 1.5},
            )
    for rung in rungs(ledger.recipe.search):
        figure.add_vline(rung, line={"dash": "dot", "width": 1})
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="epoch")
    return figure.update_yaxes(title=score_name(ledger))


def hyperparameters(ledger: Ledger, task: str) -> HyperparameterFigures | None:
    """Return the figures of a task's varied fields; None before two trials have a score, or if no field varies."""
    study = optuna.create_study(direction="maximize")
    study.add_trials([_frozen(ledger, trial) for trial in ledger.trials[task] if trial.scores])
    if len(study.trials) < 2 or not _varied(ledger, task):
        return None
    target: dict[str, Any] = {"target": lambda trial: trial.value, "target_name": score_name(ledger)}
    return HyperparameterFigures(plot_parallel_coordinate(study, **target), plot_slice(study, **target))


def _frozen(ledger: Ledger, trial: Trial) -> FrozenTrial:
    """Return a trial for Optuna's plots, with the values of choices instead of their places in the list."""
    recipe = ledger.recipe
    task = recipe.tasks[trial.task]
    space = TaskSpace(task, recipe.data.image_size)
    parameters, distributions = space.parameters(trial.config), space.distributions
    for name, domain in task.varied().items():
        if isinstance(domain, Choice):
            plain = [value if isinstance(value, int | float | str) else str(value) for value in domain.choice]
            parameters[name], distributions[name] = plain[parameters[name]], CategoricalDistribution(plain)
    return optuna.create_trial(
        state=TrialState.COMPLETE, value=trial.best, params=parameters, distributions=distributions
    )
