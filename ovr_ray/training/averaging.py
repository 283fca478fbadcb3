"""An exponential moving average of a sub-model's weights."""

from __future__ import annotations

import copy
from itertools import chain

import torch

from ovr_ray.model import SubModel


class MovingAverage:
    """A copy of a sub-model whose weights follow it; call :meth:`update` after every step.

    The decay grows with the number of steps, up to ``decay``: ``min(decay, (1 + steps) / (10 + steps))``, as in
    TensorFlow's ``tf.train.ExponentialMovingAverage``. The random initial weights of the head are soon forgotten.

    Batch statistics are averaged too: the latest ones belong to weights that the average has not reached yet. Torch's
    own ``AveragedModel`` does the same, but asks the device four times a step for its count of steps.

    Parameters
    ----------
    followed : SubModel
        Its parameters and buffers must stay the same tensors.
    decay : float

    Attributes
    ----------
    sub_model : SubModel
        The average.
    steps : int
        Number of updates so far.
    """

    def __init__(self, followed: SubModel, decay: float) -> None:
        self.sub_model = copy.deepcopy(followed).requires_grad_(False)
        self.steps, self._decay = 0, decay
        pairs = list(zip(_tensors(self.sub_model), _tensors(followed), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights of the followed sub-model; the first time, take them as they are."""
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        averages, values = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        if self._counts:  # of batches, which batch norms keep
            counts, latest = zip(*self._counts, strict=True)
            torch._foreach_copy_(counts, latest)
        self.steps += 1


def _tensors(sub_model: SubModel) -> chain[torch.Tensor]:
    return chain(sub_model.parameters(), sub_model.buffers())
