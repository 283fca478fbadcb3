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
from ovr_ray.results.worker import BATCH, _answered, _loaded
from ovr_ray.runs import RunFolder
from ovr_ray.training import allow_tf32
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


class Small:
    """Stands for a GPU whose memory suffices for a number of images; the test machine has none."""

    def __init__(self, images: int) -> None:
        self.images, self.asked = images, list[int]()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.asked.append(len(images))
        if len(images) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean((1, 2, 3)).reshape(-1, 1)


@pytest.mark.parametrize(
    ("fitting", "asked"), [(8, [8]), (3, [8, 4, 2, 2, 4, 2, 2]), (1, [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1])]
)
def test_a_batch_for_which_memory_does_not_suffice_is_halved_and_has_the_same_answers(
    fitting: int, asked: list[int]
) -> None:
    engine, images = Small(fitting), np.random.default_rng(0).random((8, 1, 4, 4), np.float32)
    assert np.array_equal(_answered(engine, images), Small(8)(images))
    assert engine.asked == asked


def test_one_image_too_large_for_the_memory_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        _answered(Small(0), np.zeros((3, 1, 4, 4), np.float32))


def test_other_errors_of_a_network_are_raised_at_once() -> None:
    asked = []

    def broken(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        _answered(broken, np.zeros((4, 1, 4, 4), np.float32))
    assert asked == [4]


def test_a_worker_computes_in_float32_whatever_ran_in_its_process_before(finished: RunFolder, cells: Path) -> None:
    allow_tf32("tf32")
    files = SavedModel(str(finished.path)).files
    _loaded(files, torch.device("cpu"), threads=torch.get_num_threads() + 1)  # no other test has loaded it so
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
