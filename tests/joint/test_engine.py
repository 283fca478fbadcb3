"""Which file of a joint model answers where, and that all of them answer alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from upath import UPath

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.joint import JointModel, ModelFiles, load_torchscript, read_metadata, write_exported, write_torchscript
from ovr_ray.model import Backbone, SubModel
from tests.support import joint_metadata, plain_recipe, random_images

SIZE = 32
CPU = torch.device("cpu")


def tiny_model() -> JointModel:
    """Return a joint model of a network so small that it is exported in a second."""
    body = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*body, nn.Linear(8, 1))
    return JointModel(["crack"], [SubModel(Backbone(network, "4"), SIZE, SIZE, 1, [0.5], [0.1])], [0.5]).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> UPath:
    """Return the TorchScript file of a model that was written as ONNX, too."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pair")
    model, file, images = tiny_model(), UPath(folder / "joint.pt"), list(random_images(size=(SIZE, SIZE)))
    recipe = plain_recipe(folder, folder, data={"image_size": SIZE})
    metadata = joint_metadata(["crack"]).model_copy(update={"recipe": recipe})
    write_torchscript(model, file, metadata, images)
    metadata = metadata.model_copy(update={"torchscript": digest_of(file)})
    write_exported(model, UPath(folder / "joint.onnx"), "onnx", metadata, images)
    return file


def digest_of(file: UPath) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_onnx_file_that_was_written_with_a_model_answers_on_cpus(pair: UPath) -> None:
    files = ModelFiles.of(pair, digest_of(pair))
    assert files == ModelFiles(str(pair), str(pair.with_name("joint.onnx")), digest_of(pair))


def test_onnx_runtime_answers_as_torch_does(pair: UPath) -> None:
    files = ModelFiles.of(pair, digest_of(pair))
    torch_only = ModelFiles(files.file, files.file, files.digest)
    for count in (1, 5):
        images = random_images(size=(SIZE, SIZE), count=count).numpy()
        by_onnx, by_torch = (each.engine(CPU, threads=1)(images) for each in (files, torch_only))
        assert by_onnx.shape == (count, 1)
        assert np.allclose(by_onnx, by_torch, atol=1e-4)
        assert count == 1 or np.ptp(by_onnx) > 1e-3


def test_an_onnx_file_of_another_model_is_not_used(pair: UPath, tmp_path: Path) -> None:
    later = UPath(tmp_path / "joint.pt")
    write_torchscript(tiny_model(), later, joint_metadata(["crack"]), list(random_images()))
    assert ModelFiles.of(later, digest_of(later)).on_cpu == str(later)
    for content in (pair.with_name("joint.onnx").read_bytes(), b"damaged", b""):
        later.with_name("joint.onnx").write_bytes(content)
        assert ModelFiles.of(later, digest_of(later)).on_cpu == str(later)
    later.with_name("joint.onnx").unlink()
    later.with_name("joint.onnx").mkdir()
    assert ModelFiles.of(later, digest_of(later)).on_cpu == str(later)


@pytest.mark.usefixtures("without_ray")
def test_an_onnx_file_predicts_like_the_model_that_it_was_written_with(pair: UPath, tmp_path: Path) -> None:
    for number, image in enumerate(random_images(size=(40, 50))):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("not an image")
    by_torch = UPath(tmp_path / "alone.pt")
    by_torch.write_bytes(pair.read_bytes())
    expected = ovr_ray.predict(str(by_torch), [str(tmp_path)])
    for model in (pair, pair.with_name("joint.onnx")):
        table = ovr_ray.predict(str(model), [str(tmp_path)])
        assert table.drop(columns="crack_probability").equals(expected.drop(columns="crack_probability"))
        assert np.allclose(table.crack_probability, expected.crack_probability, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07"])
def test_an_onnx_file_that_is_no_joint_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "joint.onnx").write_bytes(content)
    with pytest.raises(BadInput, match=r"joint\.onnx: is not a joint model[\s\S]*ovr-ray combine writes one"):
        ovr_ray.predict(str(tmp_path / "joint.onnx"), ["."])


def test_all_files_of_a_model_say_the_same_of_themselves(pair: UPath) -> None:
    onnx = pair.with_name("joint.onnx")
    by_torch, by_onnx = (read_metadata(file.read_bytes(), file) for file in (pair, onnx))
    assert by_onnx == by_torch.model_copy(update={"torchscript": digest_of(pair)})


def test_a_file_that_is_no_joint_model_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "weights.pt")
    for content in (b"not a model", (tmp_path / "weights.pt").read_bytes()):
        with pytest.raises(BadInput, match=r"is not a joint model[\s\S]*ovr-ray combine writes one"):
            load_torchscript(content)


def test_a_torchscript_file_without_our_metadata_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 1)), str(tmp_path / "other.pt"))
    with pytest.raises(BadInput, match="is not a joint model"):
        load_torchscript((tmp_path / "other.pt").read_bytes())
