from __future__ import annotations

import json
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial

from ovr_ray.recipe import Config
from ovr_ray.search.messages import Order, TrialKey, end_of, end_report, epoch_of, epoch_report
from ovr_ray.training import Cause, EarlyEnd

CONFIG = Config(lr=3e-3, weights=None, schedule={1: 1e-3, 6: 1e-4}, horizontal_flip=0.0, momentum=0.5)
ORDER = Order(TrialKey("crack", 12), CONFIG, epochs=9)
END = EarlyEnd(Cause.OUT_OF_MEMORY, "out of memory on cuda with batches in 16 micro-batches")
ROW: dict[str, Any] = {"epoch": 3, "val_average_precision": 0.75, "parts": 1}


def test_an_order_survives_what_tune_does_with_it() -> None:
    assert Order.of(ORDER.to_tune()) == ORDER


def test_an_order_is_plain_for_tunes_loggers() -> None:
    plain = ORDER.to_tune()
    assert (plain["task"], plain["number"], plain["lr"]) == ("crack", 12, 3e-3)
    json.dumps(plain, allow_nan=False)


def test_an_order_ignores_what_tune_adds() -> None:
    assert Order.of(ORDER.to_tune() | {"__trial_info__": None}) == ORDER


def test_the_key_of_one_of_tunes_trials_names_its_folder() -> None:
    trial = TuneTrial("train", stub=True, config=ORDER.to_tune())
    assert TrialKey.of(trial) == ORDER.key
    assert str(TrialKey.of(trial)) == "crack-0012"


@pytest.mark.parametrize("cause", list(Cause))
def test_an_early_end_survives_its_report(cause: Cause) -> None:
    end = EarlyEnd(cause, "why")
    assert end_of(end_report(end)) == end
    assert end_of(end_report(end) | {"done": True, "training_iteration": 1}) == end


def test_the_report_of_an_early_end_has_no_epoch_and_no_score() -> None:
    assert epoch_of(end_report(END)) is None
    assert not {"epoch", "val_average_precision"} & end_report(END).keys()


def test_the_report_of_an_epoch_is_no_early_end() -> None:
    report = epoch_report(ROW)
    assert end_of(report) is None
    assert epoch_of(report) == 3
    assert ROW.items() <= report.items()
    assert report["timesteps_total"] == 3  # TensorBoard's step
