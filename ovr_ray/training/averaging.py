"""An exponential moving average of a sub-model's weights."""

from __future__ import annotations

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ovr_ray.model import SubModel

_Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged(sub_model: SubModel, decay: float) -> AveragedModel:
    """Return a moving average of a sub-model; call its ``update_parameters(sub_model)`` after every step.

    The decay grows with the number of steps, up to ``decay``: ``min(decay, (1 + steps) / (10 + steps))``, as in
    TensorFlow's ``tf.train.ExponentialMovingAverage``. The random initial weights of the head are soon forgotten.
    """

    def update(averages: _Tensors, values: _Tensors, steps: Tensor | int) -> None:
        get_ema_multi_avg_fn(min(decay, (1 + int(steps)) / (10 + int(steps))))(averages, values, steps)

    # batch statistics are averaged too: the latest ones belong to weights that the average has not reached yet
    return AveragedModel(sub_model, multi_avg_fn=update, use_buffers=True)
