"""Random changes of training images, on whatever device they are."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import v2

from ovr_ray.recipe import Augment


def augmented(images: torch.Tensor, augment: Augment, rng: np.random.Generator) -> torch.Tensor:
    """A batch, each image changed by draws of its own.

    Parameters
    ----------
    images : Tensor of uint8, (N, C, H, W)
        Is changed in place where flips are all that is asked for.
    augment : Augment
    rng : Generator
        All draws follow from it.

    Returns
    -------
    Tensor of uint8, (N, C, H, W)
    """
    flips = rng.random((len(images), 2)) < (augment.horizontal_flip, augment.vertical_flip)
    for image, (horizontal, vertical) in zip(images, flips, strict=True):
        if horizontal or vertical:  # one by one: flips of a batch that is indexed by a mask copy it four times
            image.copy_(image.flip([-1] * bool(horizontal) + [-2] * bool(vertical)))
    if not (augment.rotation or augment.shift or augment.crop or augment.brightness):
        return images
    with torch.random.fork_rng(devices=[]):  # v2 draws from torch's own generator, as dropout does
        torch.manual_seed(int(rng.integers(1 << 63)))
        return torch.stack([_change(image, augment)(image) for image in images])


def _change(image: torch.Tensor, augment: Augment) -> v2.Transform:
    """Those of torchvision's that are asked for; corners that a rotation leaves empty get the image's mean."""
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
