"""The benchmark of a GPU runs on a CPU, at sizes that prove nothing about speed, so that it is right on a GPU too."""

from __future__ import annotations

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.measure import Row
from tests.support import BACKBONE

LOAD = gpu.Load("cpu", (BACKBONE,), size=32, batches=(8,), steps=1, runs=1, at_once=(2,), compiler="eager")
ALONE = [*gpu.VARIANTS, "plain .to(device)"]


def baselines(rows: list[Row]) -> list[str]:
    """Return the baselines of the rows; fail if one was not measured."""
    assert all(row["ratio"] > 0 and row["ours_s"] > 0 for row in rows)
    return [row["baseline"] for row in rows]


@pytest.mark.slow
def test_steps_and_feed_are_compared() -> None:
    assert baselines([*gpu.steps(LOAD, BACKBONE, 8), gpu.feeding(LOAD, BACKBONE, 8)]) == ALONE


@pytest.mark.slow
@pytest.mark.long
def test_every_comparison_runs() -> None:
    assert baselines(gpu.rows(LOAD)) == [*ALONE, "one at a time", "epoch without"]
