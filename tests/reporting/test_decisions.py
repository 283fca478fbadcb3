from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ovr_ray.model import Confusion
from ovr_ray.reporting import decisions, pictures, trials


def answers(truth: list[int], probability: list[float]) -> pd.DataFrame:
    names = [f"{i}.png" for i in range(len(truth))]
    return pd.DataFrame({"filename": names, "part": "val", "truth": truth, "probability": probability})


def test_worst_are_the_most_confident_mistakes() -> None:
    found = pictures.worst(answers([0, 0, 0, 1, 1, 1], [0.6, 0.9, 0.1, 0.4, 0.05, 0.8]), 0.5)
    assert [(list(rows.filename), total) for rows, total in found.values()] == [
        (["1.png", "0.png"], 2),
        (["4.png", "3.png"], 2),
    ]


def test_flipped_labels_look_wrong_and_others_do_not() -> None:
    truth = np.repeat([0, 1], 50)
    labels = truth.copy()
    labels[[3, 70]] = [1, 0]
    table = answers(labels.tolist(), np.where(truth, 0.9, 0.1).tolist())
    assert set(pictures.contradicted(table).filename) == {"3.png", "70.png"}


def test_labels_of_one_class_contradict_nothing() -> None:
    assert pictures.contradicted(answers([0, 0], [0.9, 0.1])).empty


def test_intervals_hold_their_rate_and_shrink_with_images() -> None:
    score = {"tp": 8, "fn": 2, "tn": 80, "fp": 10, "f1_interval": [0, 1], "average_precision_interval": [0, 1]}
    low, high = decisions.with_intervals(score)["sensitivity"]
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's of 8 in 10, by his formula
    more = decisions.with_intervals(score | {"tp": 80, "fn": 20})["sensitivity"]
    assert low < more[0] < 0.8 < more[1] < high


def test_a_rate_of_no_images_has_no_interval() -> None:
    score = {"tp": 0, "fn": 0, "tn": 8, "fp": 1, "f1_interval": [0, 0], "average_precision_interval": [0, 0]}
    assert "sensitivity" not in decisions.with_intervals(score)


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


def test_epoch_curves_are_the_ten_metrics_of_the_counts() -> None:
    row = {"train_tn": 5, "train_fp": 1, "train_fn": 2, "train_tp": 4, "train_loss": 0.5}
    row |= {key.replace("train", "val"): value for key, value in row.items()}
    curves = trials.epochs(pd.DataFrame([row | {"trial": "crack-0000", "epoch": 1}]))["crack-0000"]
    expected = Confusion(5, 1, 2, 4).metrics() | {"loss": 0.5}
    assert {name: values[0] for name, values in curves["val"].items()} == pytest.approx(expected)
