from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from ovr_ray.model import Confusion, average_precision, choose_threshold, f1_at, interval
from ovr_ray.recipe import PrecisionGoal, RecallGoal


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Truth (float32) and probability of 200 images, a fifth positive."""
    rng = np.random.default_rng(0)
    truth = (rng.random(200) < 0.2).astype(np.float32)
    return truth, (rng.normal(truth, 0.7) + 1).clip(0, 3) / 3


def test_the_ten_metrics_are_scikit_learns(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probability = scored
    decision = probability >= 0.5
    tn, fp, fn, tp = reference.confusion_matrix(truth, decision).ravel()
    confusion = Confusion.of(truth, decision)
    assert confusion.counts() == {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    expected = {
        "sensitivity": reference.recall_score(truth, decision),
        "specificity": reference.recall_score(truth, decision, pos_label=0),
        "precision": reference.precision_score(truth, decision),
        "npv": reference.precision_score(truth, decision, pos_label=0),
        "fpr": 1 - reference.recall_score(truth, decision, pos_label=0),
        "fdr": 1 - reference.precision_score(truth, decision),
        "fnr": 1 - reference.recall_score(truth, decision),
        "accuracy": reference.accuracy_score(truth, decision),
        "f1": reference.f1_score(truth, decision),
        "mcc": reference.matthews_corrcoef(truth, decision),
    }
    assert confusion.metrics() == pytest.approx(expected)


def test_metrics_without_a_denominator_are_zero() -> None:
    assert set(Confusion(0, 0, 0, 0).metrics().values()) == {0.0}


def test_the_f1_threshold_beats_all_others(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probability = scored
    best = f1_at(choose_threshold(truth, probability))(truth, probability)
    assert best == max(f1_at(t)(truth, probability) for t in np.linspace(0, 1, 2001))
    assert best > f1_at(0.5)(truth, probability)


def test_the_recall_threshold_is_the_highest_that_holds_it(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probability = scored
    threshold = choose_threshold(truth, probability, RecallGoal(recall=0.9))
    recalls = {t: Confusion.of(truth, probability >= t).metrics()["sensitivity"] for t in (threshold, *probability)}
    assert recalls[threshold] >= 0.9
    assert all(
        recalls[t] < 0.9 for t in probability[probability > threshold] if t != min(probability[probability > threshold])
    )


def precision_at(threshold: float, truth: np.ndarray, probability: np.ndarray) -> float:
    return Confusion.of(truth, probability >= threshold).metrics()["precision"]


def test_the_precision_threshold_is_the_lowest_that_holds_it(scored: tuple[np.ndarray, np.ndarray]) -> None:
    threshold = choose_threshold(*scored, PrecisionGoal(precision=0.6))
    assert precision_at(threshold, *scored) >= 0.6
    assert max(precision_at(t, *scored) for t in scored[1][scored[1] < threshold]) < 0.6


def test_a_precision_out_of_reach_becomes_the_highest_there_is(scored: tuple[np.ndarray, np.ndarray]) -> None:
    threshold = choose_threshold(*scored, PrecisionGoal(precision=0.999))
    assert precision_at(threshold, *scored) == max(precision_at(t, *scored) for t in scored[1]) < 0.999


def test_a_fixed_threshold_is_taken_as_it_is(scored: tuple[np.ndarray, np.ndarray]) -> None:
    assert choose_threshold(*scored, 0.3) == 0.3


def test_an_interval_holds_its_statistic_and_follows_from_the_seed(scored: tuple[np.ndarray, np.ndarray]) -> None:
    low, high = interval(average_precision, *scored, resamples=200)
    assert low < average_precision(*scored) < high
    assert (low, high) == interval(average_precision, *scored, resamples=200)


def test_more_images_make_a_narrower_interval(scored: tuple[np.ndarray, np.ndarray]) -> None:
    few = interval(f1_at(0.5), scored[0][:50], scored[1][:50], resamples=200)
    many = interval(f1_at(0.5), *scored, resamples=200)
    assert many[1] - many[0] < few[1] - few[0]
