from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from upath import UPath

import ovr_ray
from ovr_ray.images import read_image
from ovr_ray.joint import JointModel, load_torchscript, write_torchscript
from ovr_ray.results import SavedModel
from ovr_ray.results.worker import BATCH
from ovr_ray.runs import RunFolder
from tests.support import BACKBONE, GRAY, SIZE, joint_metadata, plain_recipe, random_images, random_sub_model


def test_images_of_many_sizes_and_bad_ones_keep_their_places(finished: RunFolder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert 2 * BATCH < 75
    for number in range(75):
        size = (30, 40) if number % 3 else (50, 50 + number)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "40.png").write_text("not an image")
    table = ovr_ray.predict(finished, [str(tmp_path)])
    assert table.index[table.error != ""].tolist() == [40]
    joint, _ = load_torchscript(finished.joint_model.read_bytes())
    for number in (0, 33, 39, 41, 74):
        alone = joint(torch.from_numpy(read_image(table.filename[number], GRAY))[None])
        assert table.crack_probability[number] == pytest.approx(alone[0, 0].item(), abs=1e-5)


def test_a_prediction_uses_the_white_of_the_models_recipe(tmp_path: Path) -> None:
    """The recipe of a model of an older version says nothing of white."""
    pixels = np.random.default_rng(0).integers(0, 128, (SIZE, SIZE), np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "plain.png")
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "black.png")
    model = JointModel(["crack"], [random_sub_model(BACKBONE, SIZE)], [0.5]).eval()
    for white, like in (({"white": 255}, "plain.png"), ({}, "black.png")):
        recipe = plain_recipe(tmp_path, tmp_path, data=white)
        metadata = joint_metadata(["crack"]).model_copy(update={"recipe": recipe})
        write_torchscript(model, UPath(tmp_path / f"{like}.pt"), metadata, [random_images()[0]])
        saved = SavedModel(str(tmp_path / f"{like}.pt"))
        answers = ovr_ray.predict(saved, [str(tmp_path)]).set_index("filename").crack_probability.round(4)
        assert answers[str(tmp_path / "deep.png")] == answers[str(tmp_path / like)]
        assert answers.nunique() == 2
