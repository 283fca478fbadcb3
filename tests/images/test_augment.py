from __future__ import annotations

import numpy as np
import pytest
import torch

from ovr_ray.images.augment import augmented
from ovr_ray.recipe import Augment, Config

STILL = Augment(horizontal_flip=0, vertical_flip=0)


def batch() -> torch.Tensor:
    """Eight times the same picture: a bright square off the middle of a dark one."""
    image = torch.full((1, 32, 32), 100, dtype=torch.uint8)
    image[:, 6:14, 8:20] = 200
    return image.repeat(8, 1, 1, 1)


def changed(**how: float) -> torch.Tensor:
    return augmented(batch(), STILL.model_copy(update=how), np.random.default_rng(0))


def test_without_a_change_images_stay_as_they_are() -> None:
    assert torch.equal(changed(), batch())


@pytest.mark.parametrize("how", [{"rotation": 20}, {"shift": 0.2}, {"crop": 0.5}, {"brightness": 0.5}])
def test_every_change_is_drawn_for_each_image_alone(how: dict[str, float]) -> None:
    images = changed(**how)
    assert images.shape == (8, 1, 32, 32)
    assert images.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in images}) >= 7
    assert torch.equal(changed(**how), images)


def test_brightness_moves_all_levels_of_an_image_alike() -> None:
    dark, light = changed(brightness=0.3)[:, 0, 0, 0].double(), changed(brightness=0.3)[:, 0, 8, 10].double()
    assert ((dark >= 69) & (dark <= 131)).all()
    assert torch.allclose(light / dark, torch.tensor(2.0).double(), atol=0.05)


def test_a_crop_enlarges() -> None:
    share = (changed(crop=0.5) > 150).double().mean((1, 2, 3))
    before = (batch() > 150).double().mean((1, 2, 3))
    assert share.mean() > before.mean()


def test_draws_leave_torchs_own_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    changed(rotation=20)
    assert torch.equal(torch.rand(3), expected)


def test_a_config_overrides_what_the_recipe_says_field_by_field() -> None:
    of_recipe = Augment(horizontal_flip=0.2, rotation=5)
    assert Config(rotation=0, crop=0.1).augment(of_recipe) == Augment(horizontal_flip=0.2, rotation=0, crop=0.1)
