"""Class activation maps: which areas of an image speak for a label."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ovr_ray.model.sub_model import SubModel


def class_activation(sub_model: SubModel, images: torch.Tensor) -> torch.Tensor:
    """Return Grad-CAM maps (Selvaraju et al., ICCV 2017) of the last feature map that the logit depends on.

    Parameters
    ----------
    sub_model : SubModel
        In eval mode. Feature maps may have their channels first or last, or be tokens of a transformer.
    images : Tensor of uint8, (N, 1 or 3, H, W)
        N is 1 or more.

    Returns
    -------
    Tensor of float32, (N, h, w)
        Evidence for the label, scaled so that each image's largest value is 1 (all 0 if there is no evidence). h and w
        are the size of the feature map.
    """
    maps: list[torch.Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and _spatial(output) is not None and output.requires_grad:
            maps.append(output)

    hooks = [module.register_forward_hook(keep) for module in sub_model.network.modules()]
    try:
        with torch.enable_grad():
            logits = sub_model(images)
            gradients = torch.autograd.grad(logits.sum(), maps, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for features, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        slope, strength = _spatial(gradient), _spatial(features.detach())
        if slope is not None and strength is not None and slope.any():  # a transformer's last patches reach no logit
            activation = (slope.mean((2, 3), keepdim=True) * strength).sum(1).relu()
            return activation / activation.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return torch.zeros(len(images), 1, 1)


def _spatial(features: torch.Tensor | None) -> torch.Tensor | None:
    """Return the feature map of square images as (N, C, h, w); None if it has no spatial axes."""
    if features is None:
        return None
    if features.dim() == 4 and features.size(2) == features.size(3) > 1:
        return features
    if features.dim() == 4 and features.size(1) == features.size(2) > 1:
        return features.permute(0, 3, 1, 2)
    if features.dim() == 3:  # class token, then patches
        side = round((features.size(1) - 1) ** 0.5)
        if side > 1 and side * side == features.size(1) - 1:
            return features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return None
