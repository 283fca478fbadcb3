"""What a task's model decides: curves over thresholds, confusion matrices, reliability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve

PARTS = ("val", "test")
COLORS = {"val": "#2a78d6", "test": "#d9822b"}
BINS = 8
"""Of the reliability diagram, with equally many images each."""

RATES = {"sensitivity": ("tp", "fn"), "specificity": ("tn", "fp"), "precision": ("tp", "fp"), "npv": ("tn", "fn")}
"""Metrics that are shares: of the first count in both."""


def answers_of(predictions: pd.DataFrame, task: str, part: str) -> pd.DataFrame:
    """The rows that count for a task in a part: ``filename, part, truth, probability``."""
    rows = predictions[(predictions.part == part) & predictions[task].notna() & (predictions.error == "")]
    return pd.DataFrame(
        {
            "filename": rows.filename,
            "part": part,
            "truth": rows[task].astype(int),
            "probability": rows[f"{task}_probability"],
        }
    )


def with_intervals(score: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """95 % intervals of what is uncertain: shares by Wilson (1927), F1 and average precision by bootstrap."""
    intervals = {name: tuple(score[f"{name}_interval"]) for name in ("f1", "average_precision")}
    for name, (hit, miss) in RATES.items():
        if score[hit] + score[miss]:
            intervals[name] = _wilson(score[hit], score[hit] + score[miss])
    return intervals


def _wilson(successes: int, trials: int) -> tuple[float, float]:
    found = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def precision_recall(parts: dict[str, pd.DataFrame], scores: dict[str, dict[str, Any]]) -> go.Figure:
    """Precision over recall; the dots are the chosen threshold's."""
    figure = go.Figure()
    for part, answers in parts.items():
        precision, recall, _ = precision_recall_curve(answers.truth, answers.probability)
        line = {"color": COLORS[part], "shape": "hv"}
        figure.add_scatter(x=recall, y=precision, mode="lines", name=part, line=line)
        score = scores[part]
        dot = {"color": COLORS[part], "size": 11, "line": {"width": 2, "color": "#888"}}
        told = f"{part} at {score['threshold']:.3f}"
        x, y = [score["sensitivity"]], [score["precision"]]
        figure.add_scatter(x=x, y=y, mode="markers", name=told, marker=dot, showlegend=False)
    figure.update_xaxes(title="recall (sensitivity)", range=[0, 1.02])
    return figure.update_yaxes(title="precision", range=[0, 1.02])


def threshold_f1(parts: dict[str, pd.DataFrame], threshold: float) -> go.Figure:
    """F1 over the threshold; the line is the chosen one."""
    figure = go.Figure()
    for part, answers in parts.items():
        precision, recall, thresholds = precision_recall_curve(answers.truth, answers.probability)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        figure.add_scatter(x=thresholds, y=f1[:-1], mode="lines", name=part, line={"color": COLORS[part]})
    figure.add_vline(threshold, line={"dash": "dash", "width": 1.5})
    figure.update_xaxes(title="threshold", range=[0, 1])
    return figure.update_yaxes(title="F1", range=[0, 1.02])


def reliability(parts: dict[str, pd.DataFrame]) -> go.Figure:
    """Share of positives over the predicted probability, in bins of equally many images, with 95 % intervals."""
    figure = go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"dash": "dot", "color": "#888"})
    for part, answers in parts.items():
        bins = pd.qcut(answers.probability.rank(method="first"), min(BINS, len(answers)), labels=False)
        grouped = answers.groupby(bins)
        positives, images = grouped.truth.sum(), grouped.truth.size()
        share = positives / images
        ends = np.array([_wilson(int(k), int(n)) for k, n in zip(positives, images, strict=True)])
        bars = {"type": "data", "symmetric": False, "array": ends[:, 1] - share, "arrayminus": share - ends[:, 0]}
        told = {"name": part, "mode": "lines+markers", "line": {"color": COLORS[part]}}
        figure.add_scatter(x=grouped.probability.mean(), y=share, error_y=bars | {"width": 2, "thickness": 1}, **told)
    figure.update_layout(legend={"y": 1})
    figure.update_xaxes(title="predicted probability", range=[0, 1.02])
    return figure.update_yaxes(title="share of positives", range=[0, 1.02])
