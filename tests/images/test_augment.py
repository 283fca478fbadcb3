from __future__ import annotations

import numpy as np
import pytest
import torch

from ovr_ray.images.augment import augmented
from ovr_ray.recipe import Augment, Config

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


def test_augmentation_does_not_advance_torchs_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    changed(rotation=20)
    assert torch.equal(torch.rand(3), expected)


def test_a_config_overrides_single_augment_fields_of_the_recipe() -> None:
    of_recipe = Augment(horizontal_flip=0.2, rotation=5)
    assert Config(rotation=0, crop=0.1).augment(of_recipe) == Augment(horizontal_flip=0.2, rotation=0, crop=0.1)
