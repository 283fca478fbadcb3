"""The scores of a task's trials over the fields that its search varies, as two figures.

Optuna draws both too, but with a trace per trial: 0.3 s and 0.25 MB for 500 trials, of which the
best are nearly white.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from ovr_ray.recipe import Choice, Domain, LogUniform, RandInt
from ovr_ray.reporting.trials import score_name, short
from ovr_ray.search import Ledger, Trial

SCALE: Final = [[0, "#c3cbd4"], [0.5, "#6f9fd0"], [1, "#d9480f"]]
"""Colours from the lowest to the highest value, which stand out the more; all are seen on white and on black."""

SHADES: Final = 24
"""Colours of the lines in parallel coordinates: one trace for each, however many trials there are."""

TICKS: Final = 5
"""Values that an axis of parallel coordinates names."""

NARROW: Final = 170
"""Pixels that the plot of a field needs; with many fields the figure is wider than the page, and scrolls."""

PAGE: Final = 1140
"""Pixels of the page's width."""


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


@dataclass(frozen=True)
class Axis:
    """An axis of parallel coordinates; places on it are between 0 and 1.

    Attributes
    ----------
    name : str
    places : list of float
        Of the trials.
    texts : list of str
        The values of the trials.
    ticks : dict of str to float
        Name -> place.
    """

    name: str
    places: list[float]
    texts: list[str]
    ticks: dict[str, float]


def hyperparameters(ledger: Ledger, task: str) -> HyperparameterFigures | None:
    """Return the figures of a task's varied fields; None before two trials have a score, or if no field varies."""
    varied = ledger.recipe.tasks[task].varied()
    scored = [(best, t) for t in ledger.trials[task] if (best := t.best) is not None and math.isfinite(best)]
    if len(scored) < 2 or not varied:
        return None
    scores, trials = [score for score, _ in scored], [trial for _, trial in scored]
    name = score_name(ledger)
    return HyperparameterFigures(_parallel(name, varied, trials, scores), _slices(name, varied, trials, scores))


def _parallel(score: str, varied: dict[str, Domain], trials: list[Trial], scores: list[float]) -> go.Figure:
    axes = [_ranged(score, scores, min(scores), max(scores))]
    axes += [_axis(name, domain, [getattr(trial.config, name) for trial in trials]) for name, domain in varied.items()]
    colors = sample_colorscale(SCALE, SHADES)
    by_shade: list[list[int]] = [[] for _ in colors]
    for index, place in enumerate(axes[0].places):
        by_shade[round(place * (SHADES - 1))].append(index)
    figure = go.Figure()
    for color, members in zip(colors, by_shade, strict=True):  # the best are drawn last, over the others
        if members:
            figure.add_scatter(
                x=[*range(len(axes)), None] * len(members),
                y=[place for i in members for place in (*(short(axis.places[i]) for axis in axes), None)],
                text=[f"{axis.name}: {axis.texts[i]}" if axis else "" for i in members for axis in (*axes, None)],
                hovertext=[trials[i].folder.name for i in members for _ in (*axes, None)],
                hovertemplate="%{text}<extra>%{hovertext}</extra>",
                mode="lines",
                line={"color": color, "width": 1.2},
                opacity=0.6,
                showlegend=False,
            )
    bar = {"color": [min(scores), max(scores)], "colorscale": SCALE, "showscale": True, "colorbar": {"title": score}}
    figure.add_scatter(x=[None, None], y=[None, None], mode="markers", marker=bar, showlegend=False, hoverinfo="skip")
    figure.update_layout(
        shapes=[{"x0": i, "x1": i, "y0": 0, "y1": 1, "line": {"width": 1}, "layer": "below"} for i in range(len(axes))],
        annotations=[
            {"x": number, "y": place, "text": text, "showarrow": False, "xanchor": "right", "xshift": -4}
            for number, axis in enumerate(axes)
            for text, place in axis.ticks.items()
        ],
        hovermode="closest",
    )
    ticks = {"tickvals": [*range(len(axes))], "ticktext": [axis.name for axis in axes]}
    figure.update_xaxes(range=[-0.3, len(axes) - 0.8], showgrid=False, zeroline=False, **ticks)
    return figure.update_yaxes(range=[-0.08, 1.08], visible=False, fixedrange=True)


def _axis(name: str, domain: Domain, values: list[Any]) -> Axis:
    if isinstance(domain, Choice):
        places = [place / max(1, len(domain.choice) - 1) for place in range(len(domain.choice))]
        ticks = dict(zip(map(str, domain.choice), places, strict=True))
        return Axis(name, [places[domain.choice.index(v)] for v in values], [str(v) for v in values], ticks)
    low, high = domain.bounds
    return _ranged(name, values, low, high, isinstance(domain, LogUniform), isinstance(domain, RandInt))


def _ranged(
    name: str, values: list[float], low: float, high: float, is_log: bool = False, is_whole: bool = False
) -> Axis:
    start, end = (math.log(low), math.log(high)) if is_log else (low, high)
    length = end - start or 1.0

    def place(value: float) -> float:
        return ((math.log(value) if is_log else value) - start) / length

    between = [start + length * step / (TICKS - 1) for step in range(TICKS)]
    named = [math.exp(value) if is_log else round(value) if is_whole else value for value in between]
    ticks = {f"{value:.3g}": place(value) for value in named}
    return Axis(name, [place(value) for value in values], [f"{value:.3g}" for value in values], ticks)


def _slices(score: str, varied: dict[str, Domain], trials: list[Trial], scores: list[float]) -> go.Figure:
    figure = make_subplots(rows=1, cols=len(varied), shared_yaxes=True, horizontal_spacing=0.2 / len(varied))
    marker = {"color": [trial.number for trial in trials], "colorscale": SCALE, "line": {"width": 0.5, "color": "#888"}}
    for column, (name, domain) in enumerate(varied.items(), 1):
        values = [getattr(trial.config, name) for trial in trials]
        figure.add_scatter(
            x=[str(v) for v in values] if isinstance(domain, Choice) else [short(v) for v in values],
            y=[short(value) for value in scores],
            text=[trial.folder.name for trial in trials],
            hovertemplate="%{x}, %{y}<extra>%{text}</extra>",
            mode="markers",
            marker=marker | {"showscale": column == 1, "colorbar": {"title": "trial"}},
            showlegend=False,
            row=1,
            col=column,
        )
        kind: dict[str, Any] = {"type": "log"} if isinstance(domain, LogUniform) else {}
        if isinstance(domain, Choice):
            kind = {"type": "category", "categoryorder": "array", "categoryarray": [str(v) for v in domain.choice]}
        figure.update_xaxes(title=name, row=1, col=column, **kind)
    figure.update_yaxes(title=score, row=1, col=1)
    return figure.update_layout(width=len(varied) * NARROW) if len(varied) * NARROW > PAGE else figure
