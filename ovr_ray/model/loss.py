"""What training minimises, and what it is reported by."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, a positive image counting ``pos_weight`` times.

    ``train_loss`` and ``val_loss`` are this one whatever is minimised, so that they compare with each other and
    between trials that smooth or focus differently.

    Parameters
    ----------
    logits, labels : Tensor of float32, (N)
    pos_weight : Tensor of float32, scalar

    Returns
    -------
    Tensor of float32, scalar
        The mean over the images.
    """
    return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=pos_weight)


def training_loss(
    logits: torch.Tensor, labels: torch.Tensor, pos_weight: torch.Tensor, smoothing: float = 0.0, gamma: float = 0.0
) -> torch.Tensor:
    """:func:`cross_entropy` with smoothed labels (Szegedy et al., CVPR 2016) and focus (Lin et al., ICCV 2017).

    Every image is weighted by its label as it is, not by the smoothed one: else a large ``pos_weight`` would pull
    negatives over to the positives.

    Parameters
    ----------
    logits, labels, pos_weight
        As of :func:`cross_entropy`; labels are 0 or 1.
    smoothing : float
        Label 1 becomes ``1 - smoothing / 2`` and 0 ``smoothing / 2``.
    gamma : float
        An image counts ``(1 - p) ** gamma`` times, p being the probability that it is given of its label.
    """
    if not (smoothing or gamma):
        return cross_entropy(logits, labels, pos_weight)
    smoothed = labels * (1 - smoothing) + smoothing / 2
    # torchvision's sigmoid_focal_loss has a gradient of NaN for sure images (p of 1) when gamma is below 1
    focus = torch.exp(gamma * F.logsigmoid((1 - 2 * labels) * logits))
    weight = 1 + (pos_weight - 1) * labels
    return (weight * focus * F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")).mean()
