"""Metrics of confusion counts, decision thresholds that reach a goal, and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import assert_never

import numpy as np

from ovr_ray.recipe import PrecisionGoal, RecallGoal, ThresholdGoal


@dataclass(frozen=True)
class Confusion:
    """Counts of a binary decision against the truth, and the ten metrics that follow from them.

    A metric whose denominator is zero is 0 (as in scikit-learn's ``zero_division=0``). Definitions: Fawcett, "An
    introduction to ROC analysis", Pattern Recognition Letters 27 (2006); MCC: Matthews, BBA 405 (1975).
    """

    tn: int
    fp: int
    fn: int
    tp: int

    @classmethod
    def of(cls, truth: np.ndarray, decision: np.ndarray) -> Confusion:
        """Count decisions: truth is 0/1 (N), decision bool (N)."""
        truth = truth.astype(bool)
        counts = [(~truth & ~decision), (~truth & decision), (truth & ~decision), (truth & decision)]
        return cls(*(int(count.sum()) for count in counts))

    def counts(self) -> dict[str, int]:
        """Return tn, fp, fn and tp by name."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """Return the ten metrics by name, each in 0..1 (MCC in -1..1)."""
        tn, fp, fn, tp = self.tn, self.fp, self.fn, self.tp
        return {
            "sensitivity": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "precision": _ratio(tp, tp + fp),
            "npv": _ratio(tn, tn + fn),
            "fpr": _ratio(fp, fp + tn),
            "fdr": _ratio(fp, fp + tp),
            "fnr": _ratio(fn, fn + tp),
            "accuracy": _ratio(tp + tn, tp + tn + fp + fn),
            "f1": self.f1,
            "mcc": _ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        }

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and sensitivity."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def choose_threshold(truth: np.ndarray, probability: np.ndarray, goal: ThresholdGoal = "f1") -> float:
    """Return the decision threshold (``probability >= threshold`` is yes) that a goal asks for.

    It lies halfway between two neighbouring probabilities, so that rounding does not change a decision.

    Parameters
    ----------
    truth : ndarray, (N)
        0 or 1, with at least one 1.
    probability : ndarray, (N)
    goal : "f1", RecallGoal, PrecisionGoal or float
        If no threshold reaches the wanted precision, the one with the highest precision is taken.
    """
    if isinstance(goal, float | int):
        return float(goal)
    from sklearn.metrics import precision_recall_curve  # takes a second, which the first step need not wait for

    precision, recall, candidates = precision_recall_curve(truth, probability)
    precision, recall = precision[:-1], recall[:-1]  # the last point belongs to no threshold
    match goal:
        case RecallGoal():
            best = int(np.flatnonzero(recall >= goal.recall)[-1])
        case PrecisionGoal():
            reached = np.flatnonzero(precision >= goal.precision)
            best = int(reached[0] if len(reached) else precision.argmax())
        case "f1":
            total = precision + recall
            best = int(np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0).argmax())
        case _:
            assert_never(goal)
    below = candidates[best - 1] if best else 0.0
    return float((candidates[best] + below) / 2)


def average_precision(truth: np.ndarray, probability: np.ndarray) -> float:
    """Return the average precision as scikit-learn defines it; 0 where there is no positive."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, probability)) if truth.any() else 0.0


def f1_at(threshold: float) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return a function of truth and probability: F1 at this threshold."""
    return lambda truth, probability: Confusion.of(truth, probability >= threshold).f1


def interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    truth: np.ndarray,
    probability: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval over images (Efron and Tibshirani, 1993)."""
    from scipy.stats import bootstrap

    if len(truth) < 2:
        return float("nan"), float("nan")
    how = {
        "paired": True,
        "vectorized": False,
        "n_resamples": resamples,
        "batch": 100,
        "method": "percentile",
        "rng": seed,
    }
    found = bootstrap((truth, probability), statistic, **how).confidence_interval
    return float(found.low), float(found.high)
