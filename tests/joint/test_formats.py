"""The joint model as ONNX and as torch.export, and networks of every family in all three formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from upath import UPath

import ovr_ray
from ovr_ray.errors import BadInput, RunFailed
from ovr_ray.joint import METADATA, Ensemble, JointModel, load_torchscript, write_exported, write_torchscript
from ovr_ray.joint.export import refuse_lacking_packages
from ovr_ray.run import RunFolder
from tests.support import BACKBONE
from tests.joint.test_joint import images, sub_model

THE_EIGHT = ("resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b3", "vgg16", "vgg19", "inception_v3")
OTHERS = ("efficientnet_lite0", "convnext_tiny", "vit_b_32", "swin_t", "mobilenet_v3_small")


@pytest.fixture
def refined() -> JointModel:
    """Two sizes, flips and calibration."""
    parts = [Ensemble([sub_model(BACKBONE, 48)], True, 2.0, -1.0), sub_model("resnet18", 64)]
    return JointModel(["a", "b"], parts, [0.3, 0.5]).eval()


@pytest.mark.slow
def test_onnx_takes_any_batch_and_knows_its_labels(refined: JointModel, tmp_path: Path) -> None:
    told = {"labels": ["a", "b"], "thresholds": [0.3, 0.5]}
    write_exported(refined, UPath(tmp_path / "joint.onnx"), "onnx", told, list(images(size=(50, 70))))
    session = onnxruntime.InferenceSession(tmp_path / "joint.onnx")
    for count in (1, 2, 7):
        batch = images(size=(64, 64), count=count)
        (answer,) = session.run(["probabilities"], {"images": batch.numpy()})
        with torch.inference_mode():
            assert np.allclose(answer, refined(batch).numpy(), atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map[METADATA]) == told


@pytest.mark.slow
def test_torch_export_takes_any_batch_and_knows_its_labels(refined: JointModel, tmp_path: Path) -> None:
    told = {"labels": ["a", "b"]}
    write_exported(refined, UPath(tmp_path / "joint.pt2"), "pt2", told, list(images(size=(50, 70), count=1)))
    extra = {METADATA: ""}
    joint = torch.export.load(tmp_path / "joint.pt2", extra_files=extra).module()
    for count in (1, 2, 7):
        batch = images(size=(64, 64), count=count)
        assert torch.allclose(joint(batch), refined(batch), atol=1e-4)
    assert json.loads(extra[METADATA]) == told


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_export_that_answers_otherwise_is_not_written(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovr_ray.joint.export.TOLERANCE", -1.0)
    model = JointModel(["a"], [sub_model(BACKBONE, 64)], [0.5]).eval()
    with pytest.raises(RunFailed, match="not written"):
        write_exported(model, UPath(tmp_path / "bad"), form, {}, list(images()))  # type: ignore[arg-type]
    assert not (tmp_path / "bad").exists()


def test_packages_that_are_lacking_are_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovr_ray.joint.export.find_spec", lambda name: None)
    refuse_lacking_packages(["pt2"])
    with pytest.raises(BadInput, match=r"pip install 'ovr-ray\[onnx\]'"):
        refuse_lacking_packages(["onnx"])


@pytest.mark.slow
def test_combine_writes_every_format_that_is_asked_for(finished: RunFolder, tmp_path: Path) -> None:
    model = ovr_ray.combine(finished, output=str(tmp_path / "model.pt"), formats=["pt2"])
    assert model.file == UPath(tmp_path / "model.pt")
    assert (tmp_path / "model.pt2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [*THE_EIGHT, *OTHERS])
def test_every_family_of_networks_scripts_and_answers_alike(backbone: str, tmp_path: Path) -> None:
    size = 96 if backbone == "inception_v3" else 64
    model = JointModel(["a"], [sub_model(backbone, size, stored_size=size)], [0.5]).eval()
    difference = write_torchscript(model, UPath(tmp_path / "joint.pt"), {}, list(images(count=2)))
    assert difference <= 1e-4
    joint, _ = load_torchscript((tmp_path / "joint.pt").read_bytes())
    answer = joint(images(3, (40, 50), 3)).detach()
    assert answer.shape == (3, 1)
    assert answer.std() > 0
