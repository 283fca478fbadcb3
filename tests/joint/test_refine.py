from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from ovr_ray.errors import BadInput
from ovr_ray.joint import PLAIN, Refinement
from ovr_ray.joint.refine import refine, refine_folds, validation_images
from ovr_ray.model import SubModel, average_precision, f1_at
from ovr_ray.recipe import Calibration, Recipe
from tests.support import BACKBONE, SIZE, random_images, random_sub_model

TRUTH = np.array([1.0, 0.0, 1.0, 0.0, np.nan, 0.0])
ALL = Refinement(top_k=2, flip_average=True, calibrate="platt")


@pytest.fixture
def members() -> list[SubModel]:
    """Return two sub-models of one task, whose networks see images of different sizes."""
    return [random_sub_model(BACKBONE, 64), random_sub_model(BACKBONE, 48)]


def test_only_the_plain_refinement_is_none() -> None:
    assert not PLAIN
    assert not Refinement()
    assert all((Refinement(top_k=2), Refinement(flip_average=True), Refinement(calibrate="platt")))


def test_every_step_is_scored_where_the_label_is_known(members: list[SubModel]) -> None:
    images, known = random_images(size=(64, 64), count=6), ~np.isnan(TRUTH)
    refined = refine(["one", "two"], members, ALL, "f1", images, TRUTH)
    assert list(refined.steps) == ["best checkpoint", "mean of 2 checkpoints", "mean of four flips", "platt"]
    with torch.inference_mode():
        first, last = (network(images).sigmoid().numpy()[known] for network in (members[0], refined.ensemble))
    assert refined.steps["best checkpoint"].average_precision == pytest.approx(average_precision(TRUTH[known], first))
    assert refined.steps["best checkpoint"].brier == pytest.approx(brier_score_loss(TRUTH[known], first), abs=1e-5)
    assert refined.steps["platt"].f1 >= f1_at(0.99)(TRUTH[known], last)
    assert refined.steps["platt"].f1 == pytest.approx(f1_at(refined.threshold)(TRUTH[known], last))


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_calibration_lowers_the_log_loss_and_keeps_the_order(method: Calibration, members: list[SubModel]) -> None:
    batch = random_images(size=(64, 64), count=40)
    with torch.inference_mode():
        logit = members[0](batch)
        truth = (logit + logit.std() * torch.randn(40) > logit.quantile(0.8)).numpy().astype(float)
        refined = refine(["one"], members[:1], Refinement(calibrate=method), "f1", batch, truth)
        calibrated = refined.ensemble(batch)
    assert torch.equal(logit.argsort(), calibrated.argsort())
    assert log_loss(truth, calibrated.sigmoid().numpy()) <= log_loss(truth, logit.sigmoid().numpy()) + 1e-6
    assert (refined.calibration.shift != 0) == (method == "platt")


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_a_calibration_that_would_reverse_the_order_is_left_out(method: Calibration, members: list[SubModel]) -> None:
    batch = random_images(size=(64, 64), count=20)
    with torch.inference_mode():
        logit = members[0](batch)
        truth = (logit < 0).numpy().astype(float)  # the network is always wrong
        refined = refine(["one"], members[:1], Refinement(calibrate=method), "f1", batch, truth)
    assert (refined.calibration.scale, refined.calibration.shift) == (1.0, 0.0)


def test_folds_are_fitted_on_the_images_that_each_held_out(members: list[SubModel]) -> None:
    label = np.arange(20) % 2
    logit = np.random.default_rng(0).normal(label - 3.0, 1.0)  # far too low for either class
    table = pd.DataFrame({"label": label, "logit": logit, "logit_flips": logit + 0.1})
    refined = refine_folds(["one", "two"], members, Refinement(flip_average=True, calibrate="platt"), "f1", table)
    assert list(refined.steps) == ["a fold alone", "mean of four flips", "platt"]
    assert refined.steps["platt"].brier < refined.steps["a fold alone"].brier
    calibrated = 1 / (1 + np.exp(-(refined.calibration.scale * (logit + 0.1) + refined.calibration.shift)))
    assert refined.steps["platt"].f1 == pytest.approx(f1_at(refined.threshold)(label, calibrated))


def test_images_that_cannot_be_read_are_left_out_and_the_places_of_the_others_are_known(
    make_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for name in ("cell00.png", "cell01.png"):
        (tmp_path / "images" / name).write_bytes((cells / "images" / name).read_bytes())
    data = make_recipe(data={"images": str(tmp_path)}).data
    images, places = validation_images(data, ["images/cell00.png", "images/gone.png", "images/cell01.png"])
    assert images.shape == (2, 1, SIZE, SIZE)
    assert places.tolist() == [0, 2]


def test_validation_images_that_are_all_gone_are_an_error(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    data = make_recipe(data={"images": str(tmp_path)}).data
    with pytest.raises(BadInput, match="none of the run's validation images"):
        validation_images(data, ["images/gone.png"])
