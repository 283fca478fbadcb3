"""Random changes of training images, computed by the batch on the device that holds the images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from ovr_ray.recipe import Augment


def augmented(images: torch.Tensor, augment: Augment, rng: np.random.Generator) -> torch.Tensor:
    """Return a batch in which every image is changed by its own random draws.

    Rotation, shift and crop are one affine map, so that an image is interpolated (bilinearly) once. What comes from
    outside of the image has the image's mean.

    Parameters
    ----------
    images : Tensor of uint8, (N, C, H, W)
        Changed in place if they are on a CPU and ``augment`` asks for flips only.
    augment : Augment
    rng : Generator
        The only source of randomness; a device changes nothing about the draws.

    Returns
    -------
    Tensor of uint8, (N, C, H, W)
    """
    flips = rng.random((len(images), 2)) < (augment.horizontal_flip, augment.vertical_flip)
    images = _flipped(images, flips)
    is_moved = augment.rotation or augment.shift or augment.crop
    if not (is_moved or augment.brightness):
        return images
    draws = _drawn(len(images), augment, rng)
    values = images.float()
    if is_moved:
        values = _moved(values, _to(draws.maps, images.device), is_filled=bool(augment.rotation or augment.shift))
    if augment.brightness:
        values = values * _to(draws.factors, images.device)
    return values.round_().clamp_(0, 255).to(torch.uint8)


class _Draws(NamedTuple):
    """What was drawn for every image: float32 (N, 2, 3), from the new image's coordinates to the old one's, and (N)."""

    maps: np.ndarray
    factors: np.ndarray


def _drawn(count: int, augment: Augment, rng: np.random.Generator) -> _Draws:
    """Return what is drawn; coordinates reach from -1 to 1, as in ``affine_grid``."""
    angle = np.radians(rng.uniform(-augment.rotation, augment.rotation, count))
    shift = 2 * augment.shift * rng.uniform(-1, 1, (count, 2))
    side = np.sqrt(rng.uniform(1 - augment.crop, 1, count))  # of a square with this share of the area
    corner = (1 - side)[:, None] * rng.uniform(-1, 1, (count, 2))
    turn = np.moveaxis(np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]), 2, 0)
    offset = turn @ (corner - shift)[..., None]
    maps = np.concatenate([turn * side[:, None, None], offset], axis=2)
    factors = rng.uniform(1 - augment.brightness, 1 + augment.brightness, count)
    return _Draws(maps.astype(np.float32), factors.astype(np.float32).reshape(-1, 1, 1, 1))


def _to(drawn: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return draws on a device; a GPU copies them from pinned memory, so that nothing waits for it."""
    tensor = torch.from_numpy(drawn)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _flipped(images: torch.Tensor, flips: np.ndarray) -> torch.Tensor:
    """Flip each image as its row says, (N, 2): left to right, upside down."""
    if images.device.type == "cpu":  # a mask would copy the whole batch four times
        for image, (horizontal, vertical) in zip(images, flips, strict=True):
            if horizontal or vertical:
                image.copy_(image.flip([-1] * bool(horizontal) + [-2] * bool(vertical)))
        return images
    return flipped_by_masks(images, _to(flips, images.device))


def flipped_by_masks(images: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Return the batch with each image flipped as its row of ``flips`` says, in a few operations for all of them."""
    masks = flips.T.reshape(2, -1, 1, 1, 1)
    for mask, dimension in zip(masks, (-1, -2), strict=True):
        images = torch.where(mask, images.flip(dimension), images)
    return images


def _moved(values: torch.Tensor, maps: torch.Tensor, is_filled: bool) -> torch.Tensor:
    grid = affine_grid(maps, list(values.shape), align_corners=False)
    if not is_filled:
        return grid_sample(values, grid, padding_mode="border", align_corners=False)
    mean = values.mean((2, 3), keepdim=True)
    return grid_sample(values - mean, grid, align_corners=False) + mean
