from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ovr_ray.images.augment import _flipped, augmented, flipped_by_masks
from ovr_ray.recipe import Augment, Config
from tests.support import Counting

STILL = Augment(horizontal_flip=0, vertical_flip=0)


def batch() -> torch.Tensor:
    """Return eight copies of one image: a bright rectangle, off center, on a dark background."""
    image = torch.full((1, 32, 32), 100, dtype=torch.uint8)
    image[:, 6:14, 8:20] = 200
    return image.repeat(8, 1, 1, 1)


def changed(**settings: float) -> torch.Tensor:
    return augmented(batch(), STILL.model_copy(update=settings), np.random.default_rng(0))


def test_images_are_unchanged_if_no_augmentation_is_set() -> None:
    assert torch.equal(changed(), batch())


@pytest.mark.parametrize("settings", [{"rotation": 20}, {"shift": 0.2}, {"crop": 0.5}, {"brightness": 0.5}])
def test_every_augmentation_is_drawn_per_image_and_reproducible(settings: dict[str, float]) -> None:
    images = changed(**settings)
    assert images.shape == (8, 1, 32, 32)
    assert images.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in images}) >= 7
    assert torch.equal(changed(**settings), images)


def test_brightness_scales_all_pixels_of_an_image_by_one_factor() -> None:
    dark, light = changed(brightness=0.3)[:, 0, 0, 0].double(), changed(brightness=0.3)[:, 0, 8, 10].double()
    assert ((dark >= 69) & (dark <= 131)).all()
    assert torch.allclose(light / dark, torch.tensor(2.0).double(), atol=0.05)


def test_a_crop_enlarges_the_content() -> None:
    share = (changed(crop=0.5) > 150).double().mean((1, 2, 3))
    before = (batch() > 150).double().mean((1, 2, 3))
    assert share.mean() > before.mean()


class Given:
    """Draws what it is given, as a share of the way from the lower end to the upper one."""

    def __init__(self, *shares: float) -> None:
        self._shares = list(shares)

    def random(self, size: tuple[int, int]) -> np.ndarray:
        return np.ones(size)

    def uniform(self, low: float, high: float, size: int | tuple[int, int]) -> np.ndarray:
        return np.full(size, low + self._shares.pop(0) * (high - low))


def drawn(
    settings: dict[str, float], angle: float = 0.5, shift: float = 0.5, area: float = 1, place: float = 0.5
) -> torch.Tensor:
    """Return one image, changed by these draws; 0.5 changes nothing, and an area of 1 is all of it."""
    rng: Any = Given(angle, shift, area, place, 0.5)
    return augmented(batch()[:1], STILL.model_copy(update=settings), rng)[0]


def test_a_quarter_turn_is_exact() -> None:
    assert torch.equal(drawn({"rotation": 90}, angle=1), batch()[0].rot90(-1, (1, 2)))


def test_a_shift_moves_the_image_and_fills_what_it_leaves_with_the_images_mean() -> None:
    found = drawn({"shift": 0.25}, shift=1)  # eight pixels to the right, and down
    assert torch.equal(found[:, 8:, 8:], batch()[0, :, :24, :24])
    mean = batch()[0].float().mean().round()
    assert (found[:, :7] == mean).all()
    assert (found[:, :, :7] == mean).all()


def test_a_crop_is_the_enlarged_part_of_the_image() -> None:
    found = drawn({"crop": 0.75}, area=0, place=0)  # the upper left quarter
    part = batch()[:1, :, :16, :16].float()
    assert (
        found - interpolate(part, (32, 32), mode="bilinear")[0]
    ).abs().max() <= 0.5 + 8  # its edge sees its neighbour
    assert torch.equal(
        found[:, 2:28, 2:28], interpolate(part, (32, 32), mode="bilinear")[0, :, 2:28, 2:28].round().byte()
    )


def test_flips_by_masks_are_those_of_one_image_after_the_other() -> None:
    images = torch.arange(4 * 2 * 5 * 5).remainder(256).byte().reshape(4, 2, 5, 5)
    flips = np.array([[False, False], [True, False], [False, True], [True, True]])
    expected = [images[0], images[1].flip(-1), images[2].flip(-2), images[3].flip(-1, -2)]
    assert torch.equal(flipped_by_masks(images, torch.from_numpy(flips)), torch.stack(expected))
    assert torch.equal(_flipped(images.clone(), flips), torch.stack(expected))


def test_all_changes_at_once_are_few_operations_for_any_number_of_images() -> None:
    everything = Augment(rotation=10, shift=0.1, crop=0.2, brightness=0.2)
    counts = []
    for repeats in (1, 4):
        images = batch().repeat(repeats, 1, 1, 1).to(torch.device("meta"))
        with Counting() as counting:
            augmented(images, everything, np.random.default_rng(0))
        counts.append(len(counting.operations))
    assert counts[0] == counts[1] < 40


def test_augmentation_does_not_advance_torchs_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    changed(rotation=20)
    assert torch.equal(torch.rand(3), expected)


def test_a_config_overrides_single_augment_fields_of_the_recipe() -> None:
    of_recipe = Augment(horizontal_flip=0.2, rotation=5)
    assert Config(rotation=0, crop=0.1).augment(of_recipe) == Augment(horizontal_flip=0.2, rotation=0, crop=0.1)
