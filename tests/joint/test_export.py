"""The joint model as TorchScript, as ONNX and as torch.export, and networks of every family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import nn
from upath import UPath

from ovr_ray.errors import RunFailed
from ovr_ray.joint import (
    METADATA,
    Ensemble,
    JointMetadata,
    JointModel,
    load_torchscript,
    write_exported,
    write_torchscript,
)
from ovr_ray.recipe import ExportFormat
from ovr_ray.runs import refuse_foreign
from tests.support import BACKBONE, joint_metadata, random_images, random_sub_model

THE_EIGHT = ("resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b3", "vgg16", "vgg19", "inception_v3")
OTHERS = ("efficientnet_lite0", "convnext_tiny", "vit_b_32", "swin_t", "mobilenet_v3_small")


@pytest.fixture(scope="module")
def mixed() -> JointModel:
    """Return a joint model of different backbones, sizes and colours; no test changes it."""
    torch.manual_seed(0)
    sub_models = [
        random_sub_model(BACKBONE, 64),
        random_sub_model("resnet18", 48),
        random_sub_model(BACKBONE, 32, stored_size=32, channels=3),
    ]
    return JointModel(["a", "b", "c"], sub_models, [0.3, 0.5, 0.7]).eval()


@pytest.fixture
def refined() -> JointModel:
    """Return a joint model with an ensemble that is flipped and calibrated."""
    ensemble = Ensemble([random_sub_model(BACKBONE, 64), random_sub_model(BACKBONE, 48)], True, 2.0, -1.0)
    return JointModel(["a", "b"], [ensemble, random_sub_model("resnet18", 64)], [0.3, 0.5]).eval()


@pytest.fixture(scope="module")
def file(mixed: JointModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the TorchScript file of the mixed model."""
    file = tmp_path_factory.mktemp("mixed") / "joint.pt"
    write_torchscript(mixed, UPath(file), joint_metadata("abc", [0.3, 0.5, 0.7]), list(random_images()))
    return file


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (300, 300)])
def test_the_file_answers_as_the_sub_models_do(
    channels: int, size: tuple[int, int], mixed: JointModel, file: Path
) -> None:
    joint, metadata = load_torchscript(file.read_bytes())
    batch = random_images(channels, size)
    with torch.inference_mode():
        expected = torch.stack([sub_model(batch).sigmoid() for sub_model in mixed.sub_models], 1)
        for given in (batch, batch.float() / 255):
            assert torch.allclose(joint(given), expected, atol=1e-4)
            assert torch.equal(joint.predict(given), joint(given) >= joint.thresholds)
    assert joint.labels == metadata.labels == ["a", "b", "c"]
    assert joint.thresholds.tolist() == pytest.approx([0.3, 0.5, 0.7])
    assert metadata.thresholds == [0.3, 0.5, 0.7]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_batch_may_be_of_any_size(count: int, file: Path) -> None:
    joint, _ = load_torchscript(file.read_bytes())
    answer = joint(random_images(count=count))
    assert answer.shape == (count, 3)
    assert answer.dtype == torch.float32
    assert joint.predict(random_images(count=count)).dtype == torch.bool


def test_a_refined_model_takes_the_same_images_and_gives_the_same_shapes(refined: JointModel, tmp_path: Path) -> None:
    write_torchscript(refined, UPath(tmp_path / "joint.pt"), joint_metadata("ab"), list(random_images()))
    joint, _ = load_torchscript((tmp_path / "joint.pt").read_bytes())
    assert joint(random_images(3, (50, 70))).shape == (4, 2)
    assert joint.predict(random_images(count=0)).shape == (0, 2)


class _OtherWhenScripted(nn.Module):
    """A network that TorchScript and Python run differently."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images)
        return logits + 3.0 if torch.jit.is_scripting() else logits


def test_a_file_that_answers_differently_from_python_is_not_written(tmp_path: Path) -> None:
    sub_model = random_sub_model(BACKBONE, 64)
    sub_model.network = _OtherWhenScripted(sub_model.network)
    model = JointModel(["a"], [sub_model], [0.5]).eval()
    with pytest.raises(RunFailed, match=r"bad\.pt: its probabilities differ by 0\.\d+ .*; not written"):
        write_torchscript(model, UPath(tmp_path / "bad.pt"), joint_metadata("a"), list(random_images()))
    assert not (tmp_path / "bad.pt").exists()


@pytest.mark.slow
def test_onnx_takes_a_batch_of_any_size_and_has_the_metadata(refined: JointModel, tmp_path: Path) -> None:
    metadata = joint_metadata("ab", [0.3, 0.5])
    write_exported(refined, UPath(tmp_path / "joint.onnx"), "onnx", metadata, list(random_images(size=(50, 70))))
    refuse_foreign({UPath(tmp_path / "joint.onnx"): "model"})
    session = onnxruntime.InferenceSession(tmp_path / "joint.onnx")
    for count in (1, 2, 7):
        batch = random_images(size=(64, 64), count=count)
        (answer,) = session.run(["probabilities"], {"images": batch.numpy()})
        with torch.inference_mode():
            assert np.allclose(answer, refined(batch).numpy(), atol=1e-4)
    for other in (random_images(size=(64, 64)).float() / 255, random_images(size=(64, 64)).long()):
        with pytest.raises(InvalidArgument, match=r"Unexpected input data type[\s\S]*expected: \(tensor\(uint8\)\)"):
            session.run(["probabilities"], {"images": other.numpy()})
    written = session.get_modelmeta().custom_metadata_map[METADATA]
    assert JointMetadata.from_json(written) == metadata
    assert json.loads(written)["thresholds"] == [0.3, 0.5]


@pytest.mark.slow
def test_torch_export_takes_a_batch_of_any_size_and_has_the_metadata(refined: JointModel, tmp_path: Path) -> None:
    metadata, file = joint_metadata("ab"), UPath(tmp_path / "joint.pt2")
    write_exported(refined, file, "pt2", metadata, list(random_images(size=(50, 70), count=1)))
    refuse_foreign({file: "model"})
    extra = {METADATA: ""}
    joint = torch.export.load(tmp_path / "joint.pt2", extra_files=extra).module()
    for count in (1, 2, 7):
        batch = random_images(size=(64, 64), count=count)
        assert torch.allclose(joint(batch), refined(batch), atol=1e-4)
    for other in (random_images(size=(64, 64)).float() / 255, random_images(size=(64, 64)).long()):
        with pytest.raises(RuntimeError, match="dtype mismatch! Expected: Byte"):
            joint(other)
    assert JointMetadata.from_json(extra[METADATA]) == metadata


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_export_that_answers_differently_is_not_written(
    form: ExportFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovr_ray.joint.export.TOLERANCE", -1.0)
    model = JointModel(["a"], [random_sub_model(BACKBONE, 64)], [0.5]).eval()
    with pytest.raises(RunFailed, match="not written"):
        write_exported(model, UPath(tmp_path / "bad"), form, joint_metadata("a"), list(random_images()))
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [*THE_EIGHT, *OTHERS])
def test_networks_of_every_family_can_be_scripted_and_give_the_same_answers(backbone: str, tmp_path: Path) -> None:
    size = 96 if backbone == "inception_v3" else 64
    model = JointModel(["a"], [random_sub_model(backbone, size, stored_size=size)], [0.5]).eval()
    images = list(random_images(count=2))
    assert write_torchscript(model, UPath(tmp_path / "joint.pt"), joint_metadata("a"), images) <= 1e-4
    joint, _ = load_torchscript((tmp_path / "joint.pt").read_bytes())
    answer = joint(random_images(3, (40, 50), 3)).detach()
    assert answer.shape == (3, 1)
    assert answer.std() > 0
