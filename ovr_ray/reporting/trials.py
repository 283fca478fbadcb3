"""What a task's search tried: a table of its trials, their learning curves, what each hyperparameter did."""

from __future__ import annotations

from itertools import count, takewhile
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import plot_parallel_coordinate, plot_slice

from ovr_ray.model import Confusion
from ovr_ray.recipe import Choice, Search
from ovr_ray.search import Ledger, TaskSpace, Trial

MARKS = {"finished": "circle", "stopped": "x", "unfinished": "circle-open", "diverged": "triangle-down"}
"""How a trial's last epoch is drawn, by its status."""

PARTS = ("train", "val")


def table(ledger: Ledger, task: str) -> pd.DataFrame:
    """A row a trial: how it ended, its best epoch, and the fields that the space varies."""
    rows = []
    for trial in ledger.trials[task]:
        best = max(trial.scores, key=trial.scores.__getitem__, default=None)
        score = None if best is None else trial.scores[best]
        row = {"trial": trial.folder.name, "status": _status(trial), ledger.metric: score, "best epoch": best}
        row |= {"epochs": trial.epoch} | {name: getattr(trial.config, name) for name in _varied(ledger, task)}
        rows.append(row | {"reason": trial.reason})
    return pd.DataFrame(rows)


def _status(trial: Trial) -> str:
    return "running" if trial.live else trial.status


def _varied(ledger: Ledger, task: str) -> list[str]:
    return list(ledger.recipe.tasks[task].varied())


def epochs(history: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Loss and the ten metrics (at probability 0.5) of every trial: name -> ``epoch``, ``train`` and ``val`` lists.

    Parameters
    ----------
    history : DataFrame
        Of one task, from :meth:`ovr_ray.search.ledger.Ledger.history`, with the trial's name in ``trial``.
    """
    curves: dict[str, dict[str, Any]] = {}
    for name, rows in history.groupby("trial"):
        curves[str(name)] = {"epoch": rows.epoch.tolist()} | {part: _part_curves(rows, part) for part in PARTS}
    return curves


def _part_curves(rows: pd.DataFrame, part: str) -> dict[str, list[float]]:
    counts = rows[[f"{part}_{name}" for name in ("tn", "fp", "fn", "tp")]].itertuples(index=False)
    metrics = pd.DataFrame([Confusion(*map(int, row)).metrics() for row in counts])
    return {"loss": rows[f"{part}_loss"].tolist()} | {str(name): metrics[name].tolist() for name in metrics}


def stopping(ledger: Ledger, task: str) -> go.Figure:
    """Every trial's score over epochs; the dotted lines are where early stopping looks."""
    figure = go.Figure()
    for trial in ledger.trials[task]:
        if trial.scores:
            status = _status(trial)
            ends = [*["circle"] * (len(trial.scores) - 1), MARKS.get(status, "x")]
            sizes = [*[4] * (len(trial.scores) - 1), 9]
            figure.add_scatter(
                x=list(trial.scores),
                y=list(trial.scores.values()),
                mode="lines+markers",
                name=f"{trial.folder.name} ({status})",
                marker={"symbol": ends, "size": sizes},
                line={"width": 1.5},
            )
    for rung in _rungs(ledger.recipe.search):
        figure.add_vline(rung, line={"dash": "dot", "width": 1})
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="epoch")
    return figure.update_yaxes(title=ledger.metric)


def _rungs(search: Search) -> list[int]:
    if search.scheduler == "none":
        return []
    rungs = (search.grace_epochs * search.reduction**k for k in count())
    return list(takewhile(lambda epoch: epoch < search.max_epochs, rungs))


def hyperparameters(ledger: Ledger, task: str) -> dict[str, go.Figure]:
    """Parallel coordinates, and the score over each hyperparameter; none before two trials have a score."""
    study = optuna.create_study(direction="maximize")
    study.add_trials([_frozen(ledger, trial) for trial in ledger.trials[task] if trial.scores])
    if len(study.trials) < 2 or not _varied(ledger, task):
        return {}
    told = {"target": lambda trial: trial.value, "target_name": ledger.metric}
    return {"parallel": plot_parallel_coordinate(study, **told), "slices": plot_slice(study, **told)}


def _frozen(ledger: Ledger, trial: Trial) -> FrozenTrial:
    """As Optuna's plots want it; choices by their values, not by their places in the list."""
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
