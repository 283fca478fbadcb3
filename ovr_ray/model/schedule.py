"""How fast a sub-model learns, at every step."""

from __future__ import annotations

import math

from ovr_ray.recipe import Config


def learning_rate(config: Config, epoch: int, max_epochs: int, share: float = 0.0) -> float:
    """The head's rate at one step; the body's is ``body_lr_factor`` times it.

    The cosine falls from ``lr`` in the first epoch to zero after the last. Without a warm-up a rate is an epoch's, the
    same at all its steps. With one, it is a step's: ``(epoch - 1 + share) / max_epochs`` is how far the cosine has
    come, and every schedule's rate is multiplied by ``(epoch - 1 + share) / warmup_epochs`` until that is 1.

    Parameters
    ----------
    config : Config
    epoch : int
        Counted from 1.
    max_epochs : int
        Where the cosine ends.
    share : float
        Of the epoch's images, in 0..1, those before the middle of the step's batch: the middle, so that neither the
        first step of the warm-up nor the last of the cosine has a rate of zero.
    """
    if not config.warmup_epochs:
        return _scheduled(config, epoch, epoch - 1, max_epochs)
    passed = epoch - 1 + share
    return _scheduled(config, epoch, passed, max_epochs) * min(1.0, passed / config.warmup_epochs)


def _scheduled(config: Config, epoch: int, passed: float, max_epochs: int) -> float:
    if isinstance(config.schedule, dict):
        return config.schedule[max(start for start in config.schedule if start <= epoch)]
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * passed / max_epochs)) / 2
    return config.lr
