"""A sub-model: preprocessing and a backbone with one logit, for one task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ovr_ray.model.backbones import Backbone


class SubModel(nn.Module):
    """Map images of any size and colour to one logit each. Scripts to TorchScript.

    Preprocessing is part of it, so that an image is treated in the same way in training and in prediction.

    Parameters
    ----------
    backbone : Backbone
        With one logit, from :func:`ovr_ray.model.build`.
    stored_size, image_size : int
        Pixels a side of the stored images, and of those that the network sees.
    channels : int
        Channels of the stored images, 1 or 3.
    mean, std : list of float, one per channel
        Of the training images, whose pixels are in 0..1.
    """

    def __init__(
        self, backbone: Backbone, stored_size: int, image_size: int, channels: int, mean: list[float], std: list[float]
    ) -> None:
        super().__init__()
        self.network = backbone.network
        self.head_path = backbone.head
        self.stored_size = stored_size
        self.image_size = image_size
        self.channels = channels
        self.mean = nn.Buffer(torch.tensor(mean).view(1, -1, 1, 1))
        self.std = nn.Buffer(torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (N), of images: uint8, or float in 0..1; (N, 1 or 3, H, W)."""
        images = prepared(images, self.channels, self.stored_size)
        if self.image_size != self.stored_size:
            images = resized(images, self.image_size)
        images = (images - self.mean) / self.std
        return self.network(images.expand(-1, 3, -1, -1)).flatten().float()

    def head(self) -> nn.Module:
        """Return the last layer of the network."""
        return self.network.get_submodule(self.head_path)

    def set_frozen(self, frozen: bool) -> None:
        """Train the head alone, or the whole network; a frozen body keeps its batch statistics."""
        self.network.requires_grad_(not frozen)
        self.head().requires_grad_(True)
        if self.training and frozen:
            self.network.eval()


def prepared(images: torch.Tensor, channels: int, size: int) -> torch.Tensor:
    """Return images as training stores them, rounded to 256 levels.

    The stored images are made by this very function: half a level changes the logits of some networks by whole numbers.

    Parameters
    ----------
    images : Tensor of uint8, or of float in 0..1, (N, 1 or 3, H, W)
    channels : int
        1 (ITU-R 601 luminance, as Pillow's "L") or 3.
    size : int
        Pixels a side.

    Returns
    -------
    Tensor of float32 in 0..1, (N, channels, size, size)
    """
    if images.dim() != 4 or (images.size(1) != 1 and images.size(1) != 3):
        raise ValueError("images must be N x 1 x H x W or N x 3 x H x W")
    levels = images.float() if images.dtype == torch.uint8 else (images.float() * 255.0).round()
    if levels.size(1) == 1 and channels == 3:
        levels = levels.expand(-1, 3, -1, -1)
    if levels.size(1) == 3 and channels == 1:
        levels = (0.299 * levels[:, 0:1] + 0.587 * levels[:, 1:2] + 0.114 * levels[:, 2:3]).round()
    if levels.size(2) != size or levels.size(3) != size:
        levels = resized(levels, size).round()
    return levels / 255.0


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return square images of this many pixels a side; bilinear with antialiasing."""
    if images.size(2) == size and images.size(3) == size:
        return images
    return F.interpolate(images, size=[size, size], mode="bilinear", align_corners=False, antialias=True)


def activate_out_of_place(network: nn.Module) -> None:
    """Replace in-place activations, which autograd and ``torch.export`` have to copy. ReLU is no problem."""
    for module in network.modules():
        if isinstance(module, nn.Hardtanh | nn.SiLU | nn.Hardswish):  # ReLU6 is a Hardtanh
            module.inplace = False
