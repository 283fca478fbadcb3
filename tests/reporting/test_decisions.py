from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ovr_ray.model import Confusion
from ovr_ray.reporting import decisions, pictures
from ovr_ray.reporting.evaluation import TaskScore


def answers(truth: list[int], probability: list[float]) -> pd.DataFrame:
    names = [f"{i}.png" for i in range(len(truth))]
    return pd.DataFrame({"filename": names, "split": "val", "truth": truth, "probability": probability})


def score(confusion: Confusion) -> TaskScore:
    images, positives = sum(confusion.counts().values()), confusion.fn + confusion.tp
    return TaskScore(
        threshold=0.5,
        images=images,
        positives=positives,
        prevalence=positives / images,
        **confusion.counts(),
        **confusion.metrics(),
        f1_interval=(0, 1),
        average_precision=0.5,
        average_precision_interval=(0, 1),
    )


def test_mistakes_begin_with_the_most_confident() -> None:
    found = pictures.mistakes(answers([0, 0, 0, 1, 1, 1], [0.6, 0.9, 0.1, 0.4, 0.05, 0.8]), 0.5)
    assert {kind: list(rows.filename) for kind, rows in found.items()} == {
        "false positives": ["1.png", "0.png"],
        "false negatives": ["4.png", "3.png"],
    }


def test_mistakes_are_decided_in_single_precision_as_evaluate_does() -> None:
    probability = float(np.float32(0.25007385))
    written = float(f"{probability:.9g}")  # as predictions.csv has it
    assert written < probability
    found = pictures.mistakes(answers([0, 1], [written, written]), probability)
    assert [len(rows) for rows in found.values()] == [1, 0]


def test_flipped_labels_look_wrong_and_others_do_not() -> None:
    truth = np.repeat([0, 1], 50)
    labels = truth.copy()
    labels[[3, 70]] = [1, 0]
    table = answers(labels.tolist(), np.where(truth, 0.9, 0.1).tolist())
    assert set(pictures.contradicted(table).filename) == {"3.png", "70.png"}


def test_labels_of_one_class_contradict_nothing() -> None:
    assert pictures.contradicted(answers([0, 0], [0.9, 0.1])).empty


def sensitivity_interval(confusion: Confusion) -> tuple[float, float]:
    interval = decisions.measures(score(confusion))["sensitivity"].interval
    assert interval
    return interval


def test_intervals_hold_their_rate_and_shrink_with_images() -> None:
    low, high = sensitivity_interval(Confusion(tn=80, fp=10, fn=2, tp=8))
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's of 8 in 10, by his formula
    more = sensitivity_interval(Confusion(tn=80, fp=10, fn=20, tp=80))
    assert low < more[0] < 0.8 < more[1] < high


def test_a_rate_of_no_images_has_no_interval() -> None:
    assert decisions.measures(score(Confusion(tn=8, fp=1, fn=0, tp=0)))["sensitivity"].interval is None


def test_every_metric_of_a_score_is_shown() -> None:
    confusion = Confusion(tn=80, fp=10, fn=2, tp=8)
    shown = {name: measure.value for name, measure in decisions.measures(score(confusion)).items()}
    assert shown.items() >= confusion.metrics().items()
    assert shown.keys() - confusion.metrics().keys() == {"threshold", "prevalence", "average precision"}


def test_curves_pass_through_the_chosen_threshold() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 60)
    table = answers(truth.tolist(), np.clip(truth * 0.3 + rng.random(60) * 0.7, 0, 1).tolist())
    threshold = float(table.probability.sort_values().iloc[30])
    figure = decisions.threshold_f1({"val": table}, threshold)
    at = list(figure.data[0].x).index(threshold)
    confusion = Confusion.of(table.truth.to_numpy(), (table.probability >= threshold).to_numpy())
    assert figure.data[0].y[at] == pytest.approx(confusion.f1)


def test_reliability_counts_every_image_once() -> None:
    rng = np.random.default_rng(2)
    probability = rng.random(800)
    truth = (rng.random(800) < probability).astype(int)
    figure = decisions.reliability({"val": answers(truth.tolist(), probability.tolist())})
    predicted, share = np.array(figure.data[1].x), np.array(figure.data[1].y)
    assert len(share) == decisions.BINS
    assert np.mean(share) == pytest.approx(truth.mean())
    assert np.abs(predicted - share).max() < 0.15  # drawn from these probabilities
