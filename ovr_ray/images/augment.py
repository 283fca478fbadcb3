"""Random changes of training images, computed on the device that holds the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ovr_ray.recipe import Augment

if TYPE_CHECKING:
    from torchvision.transforms import v2


def augmented(images: torch.Tensor, augment: Augment, rng: np.random.Generator) -> torch.Tensor:
    """Return a batch in which every image is changed by its own random draws.

    Parameters
    ----------
    images : Tensor of uint8, (N, C, H, W)
        Changed in place if ``augment`` asks for flips only.
    augment : Augment
    rng : Generator
        The only source of randomness.

    Returns
    -------
    Tensor of uint8, (N, C, H, W)
    """
    flips = rng.random((len(images), 2)) < (augment.horizontal_flip, augment.vertical_flip)
    for image, (horizontal, vertical) in zip(images, flips, strict=True):
        if horizontal or vertical:  # one image at a time: flipping a batch through a mask copies the batch four times
            image.copy_(image.flip([-1] * bool(horizontal) + [-2] * bool(vertical)))
    if not (augment.rotation or augment.shift or augment.crop or augment.brightness):
        return images
    with torch.random.fork_rng(devices=[]):  # v2 draws from torch's own generator, as dropout does
        torch.manual_seed(int(rng.integers(1 << 63)))
        return torch.stack([_change(image, augment)(image) for image in images])


def _change(image: torch.Tensor, augment: Augment) -> v2.Transform:
    """Return the requested torchvision transforms; the image's mean fills the corners that a rotation empties."""
    from torchvision.transforms import v2  # takes two seconds; predictions import this file, too

    changes: list[v2.Transform] = []
    if augment.rotation or augment.shift:
        shift, fill = (augment.shift, augment.shift), image.float().mean((1, 2)).tolist()
        bilinear = v2.InterpolationMode.BILINEAR
        changes.append(v2.RandomAffine(augment.rotation, shift, interpolation=bilinear, fill=fill))
    if augment.crop:
        changes.append(v2.RandomResizedCrop(image.shape[-1], scale=(1 - augment.crop, 1), ratio=(1, 1)))
    if augment.brightness:
        changes.append(v2.ColorJitter(brightness=augment.brightness))
    return v2.Compose(changes)
