"""The decisions of a task's joint model: metrics with intervals, curves over thresholds, reliability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve

from ovr_ray.recipe import Split
from ovr_ray.runs import Interval, TaskScore

SPLIT_NAMES: Final[Mapping[Split, str]] = {"train": "training", "val": "validation", "test": "test"}
"""Names of the splits on the page."""

COLORS: Final[Mapping[Split, str]] = {"val": "#2a78d6", "test": "#d9822b"}
"""Colours of the splits that a joint model is evaluated on."""

BINS: Final = 8
"""Number of bins in the reliability diagram; each has the same number of images."""


@dataclass(frozen=True)
class Measure:
    """The value of a metric, and its 95 % interval if it has one."""

    value: float | None
    interval: Interval | None = None


def measures(score: TaskScore) -> dict[str, Measure]:
    """Return the threshold and every metric of a score, by name.

    Intervals of shares are Wilson's (1927). Those of F1 and average precision were bootstrapped by ``evaluate``.
    """
    return {
        "threshold": Measure(score.threshold),
        "prevalence": Measure(score.prevalence),
        "sensitivity": Measure(score.sensitivity, _share_interval(score.tp, score.fn)),
        "specificity": Measure(score.specificity, _share_interval(score.tn, score.fp)),
        "precision": Measure(score.precision, _share_interval(score.tp, score.fp)),
        "npv": Measure(score.npv, _share_interval(score.tn, score.fn)),
        "fpr": Measure(score.fpr),
        "fdr": Measure(score.fdr),
        "fnr": Measure(score.fnr),
        "accuracy": Measure(score.accuracy),
        "f1": Measure(score.f1, score.f1_interval),
        "mcc": Measure(score.mcc),
        "average precision": Measure(score.average_precision, score.average_precision_interval),
    }


def _share_interval(hits: int, misses: int) -> Interval | None:
    """Return the interval of ``hits`` in all; None if there are no images."""
    return _wilson(hits, hits + misses) if hits + misses else None


def _wilson(successes: int, trials: int) -> Interval:
    found = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def answers_of(predictions: pd.DataFrame, task: str, split: Split) -> pd.DataFrame:
    """Return the answers that count for a task in a split.

    Parameters
    ----------
    predictions : DataFrame
        See :class:`~ovr_ray.reporting.evaluation.Evaluation`.
    task : str
    split : Split

    Returns
    -------
    DataFrame
        ``filename``, ``split``, ``truth`` (0 or 1) and ``probability`` of every image that has a label and was read.
    """
    rows = predictions[(predictions.part == split) & predictions[task].notna() & (predictions.error == "")]
    return pd.DataFrame(
        {
            "filename": rows.filename,
            "split": split,
            "truth": rows[task].astype(int),
            "probability": rows[f"{task}_probability"],
        }
    )


def precision_recall(answers: Mapping[Split, pd.DataFrame], scores: Mapping[Split, TaskScore]) -> go.Figure:
    """Return precision over recall; a dot marks the chosen threshold."""
    figure = go.Figure()
    for split, own in answers.items():
        name, color, score = SPLIT_NAMES[split], COLORS[split], scores[split]
        precision, recall, _ = precision_recall_curve(own.truth, own.probability)
        line = {"color": color, "shape": "hv"}
        figure.add_scatter(x=recall, y=precision, mode="lines", name=name, line=line)
        figure.add_scatter(
            x=[score.sensitivity],
            y=[score.precision],
            mode="markers",
            name=f"{name} at {score.threshold:.3f}",
            marker={"color": color, "size": 11, "line": {"width": 2, "color": "#888"}},
            showlegend=False,
        )
    figure.update_xaxes(title="recall (sensitivity)", range=[0, 1.02])
    return figure.update_yaxes(title="precision", range=[0, 1.02])


def threshold_f1(answers: Mapping[Split, pd.DataFrame], threshold: float) -> go.Figure:
    """Return F1 over the threshold; a line marks the chosen threshold."""
    figure = go.Figure()
    for split, own in answers.items():
        precision, recall, thresholds = precision_recall_curve(own.truth, own.probability)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        line = {"color": COLORS[split]}
        figure.add_scatter(x=thresholds, y=f1[:-1], mode="lines", name=SPLIT_NAMES[split], line=line)
    figure.add_vline(threshold, line={"dash": "dash", "width": 1.5})
    figure.update_xaxes(title="threshold", range=[0, 1])
    return figure.update_yaxes(title="F1", range=[0, 1.02])


def reliability(answers: Mapping[Split, pd.DataFrame]) -> go.Figure:
    """Return the share of positives over the predicted probability, with 95 % intervals (Wilson, 1927)."""
    figure = go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"dash": "dot", "color": "#888"})
    for split, own in answers.items():
        bins = pd.qcut(own.probability.rank(method="first"), min(BINS, len(own)), labels=False)
        grouped = own.groupby(bins)
        positives, images = grouped.truth.sum(), grouped.truth.size()
        share = positives / images
        ends = np.array([_wilson(int(k), int(n)) for k, n in zip(positives, images, strict=True)])
        bars = {"type": "data", "symmetric": False, "array": ends[:, 1] - share, "arrayminus": share - ends[:, 0]}
        figure.add_scatter(
            x=grouped.probability.mean(),
            y=share,
            error_y=bars | {"width": 2, "thickness": 1},
            mode="lines+markers",
            name=SPLIT_NAMES[split],
            line={"color": COLORS[split]},
        )
    figure.update_layout(legend={"y": 1})
    figure.update_xaxes(title="predicted probability", range=[0, 1.02])
    return figure.update_yaxes(title="share of positives", range=[0, 1.02])
