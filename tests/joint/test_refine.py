from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from upath import UPath

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.images import read_labels
from ovr_ray.joint import Ensemble, JointModel, Refinement, load_torchscript, winners, write_torchscript
from ovr_ray.joint.refine import refine, table_of, validation_images
from ovr_ray.model import SubModel, choose_threshold, f1_at, load_sub_model
from ovr_ray.runs import RunFolder
from tests.support import BACKBONE
from tests.joint.test_joint import images, sub_model


@pytest.fixture
def members() -> list[SubModel]:
    return [sub_model(BACKBONE, 64), sub_model(BACKBONE, 48)]


TRUTH = np.array([1.0, 0.0, 1.0, 0.0, np.nan, 0.0])
ALL = Refinement(top_k=2, flip_average=True, calibrate="platt")


@torch.inference_mode()
def test_an_ensemble_is_the_mean_over_members_and_flips(members: list[SubModel]) -> None:
    batch = images(size=(64, 64))
    flips = [batch, batch.flip(3), batch.flip(2), batch.flip(2).flip(3)]
    mean = torch.stack([member(view) for member in members for view in flips]).mean(0)
    assert torch.allclose(Ensemble(members, True, 2.0, -1.0)(batch), 2 * mean - 1, atol=1e-4)
    assert torch.allclose(Ensemble(members[:1])(batch), members[0](batch))


@torch.inference_mode()
def test_with_flips_an_image_and_its_mirror_image_are_answered_alike(members: list[SubModel]) -> None:
    ensemble, batch = Ensemble(members, flip_average=True), images(size=(64, 64))
    assert torch.allclose(ensemble(batch), ensemble(batch.flip(3)), atol=1e-4)
    assert not torch.allclose(members[0](batch), members[0](batch.flip(3)), atol=1e-4)


def test_a_refined_joint_model_keeps_its_contract(members: list[SubModel], tmp_path: Path) -> None:
    model = JointModel(["a", "b"], [Ensemble(members, True, 2.0, -1.0), members[0]], [0.5, 0.5]).eval()
    write_torchscript(model, UPath(tmp_path / "joint.pt"), {}, list(images()))
    joint, _ = load_torchscript((tmp_path / "joint.pt").read_bytes())
    assert joint(images(3, (50, 70))).shape == (4, 2)
    assert joint.predict(images(count=0)).shape == (0, 2)


def test_every_step_is_scored_where_the_label_is_known(members: list[SubModel]) -> None:
    refined = refine(["one", "two"], members, ALL, "f1", images(size=(64, 64), count=6), TRUTH)
    assert list(refined.steps) == ["best checkpoint", "mean of 2 checkpoints", "mean of four flips", "platt"]
    known = ~np.isnan(TRUTH)
    assert table_of({"a": refined.steps}).row_count == 4
    with torch.inference_mode():
        probability = refined.ensemble(images(size=(64, 64), count=6)).sigmoid().numpy()
    assert refined.steps["platt"]["f1"] >= f1_at(0.99)(TRUTH[known], probability[known])


@pytest.mark.parametrize("how", ["platt", "temperature"])
def test_calibration_lowers_the_log_loss_and_changes_no_order(how: str, members: list[SubModel]) -> None:
    batch, truth = images(size=(64, 64), count=40), (torch.rand(40) < 0.2).numpy().astype(float)
    with torch.inference_mode():
        logit = members[0](batch)
        truth = (logit + logit.std() * torch.randn(40) > logit.quantile(0.8)).numpy().astype(float)
        refined = refine(["one"], members[:1], Refinement(calibrate=how), "f1", batch, truth)  # type: ignore[arg-type]
        calibrated = refined.ensemble(batch)
    assert torch.equal(logit.argsort(), calibrated.argsort())
    assert log_loss(truth, calibrated.sigmoid().numpy()) <= log_loss(truth, logit.sigmoid().numpy()) + 1e-6


def best_f1(run: RunFolder, task: str) -> float:
    """Of the winner on validation, computed anew: a hardly trained network's F1 hangs on its logits' last digits."""
    recipe, split, winner = run.recipe(), run.split(), winners.read(run)[task]
    names = split.filename[split.part == "val"]
    labels = read_labels(recipe.data, recipe.tasks, with_split=False).named(names).labels[task].to_numpy()
    with torch.inference_mode():
        logits = load_sub_model(winner.checkpoint, winner.card)(validation_images(recipe.data, names.tolist())[0])
    probability = logits.sigmoid().numpy()
    return f1_at(choose_threshold(labels, probability))(labels, probability)


def test_combine_refines_and_says_what_each_step_gave(finished: RunFolder, tmp_path: Path) -> None:
    plain = (finished.path / "winners.json").read_text()
    model = ovr_ray.combine(finished, output=str(tmp_path / "joint.pt"), refinement=ALL)
    told = json.loads((tmp_path / "winners.json").read_text())
    assert (finished.path / "winners.json").read_text() == plain
    for task, winner in json.loads(plain).items():
        assert told[task]["members"][0] == f"{winner['trial']}@{winner['epoch']}"
        assert len({member.partition("@")[0] for member in told[task]["members"]}) == 2
        steps = model.metadata["refinement"][task]["validation"]
        assert list(steps) == ["best checkpoint", "mean of 2 checkpoints", "mean of four flips", "platt"]
        assert steps["best checkpoint"]["f1"] == pytest.approx(best_f1(finished, task))
    joint, _ = load_torchscript((tmp_path / "joint.pt").read_bytes())
    assert joint.thresholds.tolist() == pytest.approx([told[task]["threshold"] for task in ("crack", "inactive")])


def test_validation_images_that_are_gone_are_told(finished: RunFolder, tmp_path: Path) -> None:
    data = finished.recipe().data.model_copy(update={"images": str(tmp_path)})
    with pytest.raises(BadInput, match="none of the run's validation images"):
        validation_images(data, ["images/gone.png"])
