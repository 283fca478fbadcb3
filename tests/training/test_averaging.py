from __future__ import annotations

import pytest
import torch
from torch import nn

from ovr_ray.model import Backbone, SubModel
from ovr_ray.training.averaging import MovingAverage


def followed(decay: float, values: list[float]) -> list[tuple[float, float, int]]:
    """Return an average's weight, batch statistic and number of batches, after each value of the averaged ones."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    sub_model = SubModel(Backbone(network, head="0"), 8, 8, 1, [0.5], [0.2])
    average = MovingAverage(sub_model, decay)
    trained, averages = sub_model.state_dict(), average.sub_model.state_dict()
    weight, statistic = "network.0.weight", "network.1.running_mean"
    seen = []
    for value in values:
        trained[weight].fill_(value)
        trained[statistic].fill_(value)
        average.update()
        seen.append((averages[weight].item(), averages[statistic].item(), average.steps))
    assert torch.equal(averages["mean"], sub_model.mean)
    return seen


def test_the_decay_grows_with_the_steps_up_to_the_given_one() -> None:
    expected, average = [], 0.0
    for step, value in enumerate([5.0, 1.0, 2.0, 4.0]):
        decay = min(0.2, (1 + step) / (10 + step)) if step else 0.0  # the first step's weights are taken as they are
        average = decay * average + (1 - decay) * value
        expected.append(average)
    seen = followed(0.2, [5.0, 1.0, 2.0, 4.0])
    assert [weight for weight, _, _ in seen] == pytest.approx(expected)
    assert [count for _, _, count in seen] == [1, 2, 3, 4]


def test_batch_statistics_are_averaged_as_weights_are() -> None:
    assert all(weight == statistic for weight, statistic, _ in followed(0.9, [5.0, 1.0, 2.0]))


def test_a_high_decay_does_not_keep_the_first_weights() -> None:
    last, _, _ = followed(0.9999, [100.0] + [0.0] * 60)[-1]
    assert last < 0.01
