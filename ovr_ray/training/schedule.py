"""The learning rate at every step."""

from __future__ import annotations

import math
from typing import assert_never

from ovr_ray.recipe import Config


def learning_rate(config: Config, epoch: int, max_epochs: int, share: float = 0.0) -> float:
    """Return the head's learning rate at one step; the body's is ``body_lr_factor`` times it.

    The cosine falls from ``lr`` in the first epoch to zero after the last. Without warm-up the rate is the same at all
    steps of an epoch. With warm-up it changes at every step: the cosine has progressed by ``(epoch - 1 + share) /
    max_epochs``, and the rate of every schedule is multiplied by ``(epoch - 1 + share) / warmup_epochs`` until that
    factor is 1.

    Parameters
    ----------
    config : Config
    epoch : int
        Counted from 1.
    max_epochs : int
        Epoch after which the cosine is zero.
    share : float
        Share, in 0..1, of the epoch's images that come before the middle of the step's batch. With the middle, neither
        the first step of the warm-up nor the last step of the cosine has a rate of zero.
    """
    if not config.warmup_epochs:
        return _scheduled(config, epoch, epoch - 1, max_epochs)
    passed = epoch - 1 + share
    return _scheduled(config, epoch, passed, max_epochs) * min(1.0, passed / config.warmup_epochs)


def _scheduled(config: Config, epoch: int, passed: float, max_epochs: int) -> float:
    schedule = config.schedule
    if isinstance(schedule, dict):
        return schedule[max(start for start in schedule if start <= epoch)]
    match schedule:
        case "cosine":
            return config.lr * (1 + math.cos(math.pi * passed / max_epochs)) / 2
        case "constant":
            return config.lr
        case _:
            assert_never(schedule)
