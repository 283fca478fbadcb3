from __future__ import annotations

import math
from typing import Any

import pytest

from ovr_ray.recipe import Config
from ovr_ray.training import learning_rate


def test_without_a_warm_up_the_rate_is_the_same_at_all_steps_of_an_epoch() -> None:
    staged = Config(schedule={1: 1e-3, 6: 1e-4, 21: 1e-5})
    assert [learning_rate(staged, epoch, 30) for epoch in (1, 5, 6, 20, 21, 30)] == [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    assert {learning_rate(Config(schedule="constant", lr=0.1), epoch, 9) for epoch in range(1, 10)} == {0.1}
    cosine = [learning_rate(Config(lr=0.1), epoch, 10) for epoch in range(1, 11)]
    assert cosine[0] == 0.1
    assert cosine == sorted(cosine, reverse=True)
    assert 0 < cosine[-1] < 0.01
    assert learning_rate(Config(lr=0.1), 4, 10, share=0.9) == cosine[3]


def test_with_a_warm_up_the_cosine_falls_step_by_step() -> None:
    config = Config(lr=0.1, warmup_epochs=1)
    rates = [learning_rate(config, epoch, 10, share) for epoch in (2, 3) for share in (0.125, 0.375, 0.625, 0.875)]
    expected = [0.05 * (1 + math.cos(math.pi * (passed + 0.5) / 40)) for passed in range(4, 12)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "later"), [("constant", 0.1), ({1: 0.1, 3: 0.01}, 0.01)], ids=["constant", "staged"]
)
def test_every_schedule_warms_up_over_fractions_of_an_epoch_too(schedule: Any, later: float) -> None:
    config = Config(lr=0.1, schedule=schedule, warmup_epochs=1.5)
    steps = [(1, 0.25), (1, 0.75), (2, 0.25), (2, 0.5), (2, 0.75), (3, 0.25)]
    rates = [learning_rate(config, epoch, 5, share) for epoch, share in steps]
    assert rates == pytest.approx([0.1 / 6, 0.1 / 2, 0.1 * 5 / 6, 0.1, 0.1, later])


@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0])
def test_an_unknown_schedule_is_refused(warmup_epochs: float) -> None:
    config = Config.model_construct(schedule="linear", warmup_epochs=warmup_epochs)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="linear"):
        learning_rate(config, 1, 10)
