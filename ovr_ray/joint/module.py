"""The networks of a joint model: ensembles of sub-models, and all tasks behind one preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ovr_ray.model import SubModel, prepared


class Ensemble(nn.Module):
    """Several sub-models of one task, with flips and calibration, behind the interface of one sub-model.

    It scripts to TorchScript.

    Parameters
    ----------
    members : list of SubModel
        Sub-models of one task and one recipe, whose logits are averaged.
    flip_average : bool
        Average over the image as it is, mirrored, upside down, and both mirrored and upside down.
    scale, shift : float
        Calibration of the averaged logit: ``scale * logit + shift``.
    """

    def __init__(
        self, members: list[SubModel], flip_average: bool = False, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.flip_average, self.scale, self.shift = flip_average, scale, shift
        self.stored_size, self.channels = members[0].stored_size, members[0].channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (N), of images that :class:`~ovr_ray.model.SubModel` takes."""
        seen = views(prepared(images, self.channels, self.stored_size), self.flip_average)
        logits: list[torch.Tensor] = []
        for member in self.members:  # each sees all views in one pass: an exported graph has every network once
            logits.append(member(seen))  # noqa: PERF401  TorchScript has no such comprehension
        return self.scale * torch.stack(logits).mean(0).view(-1, images.size(0)).mean(0) + self.shift


def views(images: torch.Tensor, flipped: bool) -> torch.Tensor:
    """Return the N images as they are and, if ``flipped``, three times N flipped ones below them."""
    if not flipped:
        return images
    return torch.cat([images, images.flip(3), images.flip(2), images.flip(2, 3)])


class JointModel(nn.Module):
    """Map images of any size and colour to a probability and a decision for every label. Scripts to TorchScript.

    Parameters
    ----------
    labels : list of str
        Names of the tasks, in the order of the output's columns.
    sub_models : list of SubModel or Ensemble
    thresholds : list of float
    """

    def __init__(self, labels: list[str], sub_models: Sequence[SubModel | Ensemble], thresholds: list[float]) -> None:
        super().__init__()
        self.labels = labels
        self.sub_models = nn.ModuleList(sub_models)
        self.thresholds = nn.Buffer(torch.tensor(thresholds, dtype=torch.float32))
        first = sub_models[0]
        self.stored_size = first.stored_size
        self.channels = first.channels
        self.alike = all((m.stored_size, m.channels) == (first.stored_size, first.channels) for m in sub_models)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities, float32 (N, labels), of images: uint8, or float in 0..1; (N, 1 or 3, H, W), N >= 0.

        Other types, and floats that are not numbers or lie outside of 0..1 by more than 0.001 (as a resize may leave
        them), are refused with a ValueError.
        """
        if images.dtype != torch.uint8:
            is_in_range = images.is_floating_point() and bool(((images >= -0.001) & (images <= 1.001)).all())
            if not is_in_range:  # NaN neither
                raise ValueError("images must be uint8, or float in 0..1 without NaN")
        if images.dim() != 4 or (images.size(1) != 1 and images.size(1) != 3):
            raise ValueError("images must be N x 1 x H x W or N x 3 x H x W")
        if images.size(0) == 0:
            return torch.zeros([0, len(self.labels)], device=images.device)
        if self.alike:  # converted and resized once for all tasks
            images = prepared(images, self.channels, self.stored_size)
        columns: list[torch.Tensor] = []
        for sub_model in self.sub_models:
            columns.append(torch.sigmoid(sub_model(images)))  # noqa: PERF401  TorchScript has no such comprehension
        return torch.stack(columns, dim=1)

    @torch.jit.export
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return decisions, bool (N, labels), of such images."""
        return self.forward(images) >= self.thresholds
