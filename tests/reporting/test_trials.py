from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from ovr_ray.model import Confusion
from ovr_ray.recipe import Recipe, Search
from ovr_ray.reporting import trials
from ovr_ray.runs import Status
from tests.reporting.support import searched


def drawn(figure: Any) -> dict[str, dict[int, float]]:
    """Return what the lines of a figure show: name -> epoch -> score; fails if a line joins two names."""
    found: dict[str, dict[int, float]] = {}
    for trace in figure.data:
        before = None
        for x, y, name in zip(trace.x, trace.y, trace.text, strict=True):
            assert before is None or x is None or before == name, "one line joins two trials"
            before = None if x is None else name
            if x is not None:
                assert x not in found.setdefault(name, {}), "it is drawn twice"
                found[name][x] = y
    return found


def test_every_epoch_of_every_trial_is_drawn_once_and_no_line_joins_two(make_recipe: Callable[..., Recipe]) -> None:
    ledger = searched(make_recipe(), [{epoch: (number + epoch) / 40 for epoch in (1, 2, 3)} for number in range(25)])
    figure = trials.stopping(ledger, "crack")
    assert len(figure.data) == 10
    expected = {f"crack-{number:04d} (finished)": {e: (number + e) / 40 for e in (1, 2, 3)} for number in range(25)}
    assert drawn(figure) == expected


def test_the_mark_of_a_trials_end_is_at_its_last_epoch(make_recipe: Callable[..., Recipe]) -> None:
    ledger = searched(make_recipe(), [{1: 0.5, 2: 0.6}, {1: 0.4}], [Status.STOPPED, Status.FAILED])
    marks = {
        trace.text[0]: [symbol for symbol, x in zip(trace.marker.symbol, trace.x, strict=True) if x is not None]
        for trace in trials.stopping(ledger, "crack").data
    }
    assert marks == {"crack-0000 (stopped)": ["circle", "x"], "crack-0001 (failed)": ["square"]}


@pytest.mark.parametrize(
    ("value", "shown"), [(1 / 3, 0.33333), (1.23456789e-7, 1.2346e-7), (math.nan, None), (math.inf, None)]
)
def test_numbers_are_as_long_as_a_plot_shows_and_valid_json(value: float, shown: float | None) -> None:
    assert trials.short(value) == shown


def test_epoch_curves_are_the_ten_metrics_of_the_counts() -> None:
    row = {"train_tn": 5, "train_fp": 1, "train_fn": 2, "train_tp": 4, "train_loss": 0.5}
    row |= {key.replace("train", "val"): value for key, value in row.items()}
    curves = trials.epochs(pd.DataFrame([row | {"trial": "crack-0000", "epoch": 1}]))["crack-0000"]
    expected = Confusion(5, 1, 2, 4).metrics() | {"loss": 0.5}
    assert {name: values[0] for name, values in curves["val"].items()} == pytest.approx(expected, rel=1e-4)


def test_every_status_has_a_mark() -> None:
    assert trials.MARKS.keys() == {trials.RUNNING, *Status}


def test_rungs_lie_before_the_last_epoch() -> None:
    search = Search(scheduler="asha", max_epochs=27, grace_epochs=3, reduction=3)
    assert trials.rungs(search) == [3, 9]
    assert trials.rungs(search.model_copy(update={"scheduler": "none"})) == []
