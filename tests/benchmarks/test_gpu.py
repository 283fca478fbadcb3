"""The GPU's benchmark on a CPU, at sizes that tell nothing of speed, so that it is right the first time on a GPU."""

from __future__ import annotations

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.measure import Row
from tests.support import BACKBONE

LOAD = gpu.Load("cpu", (BACKBONE,), size=32, batches=(8,), steps=1, runs=1, at_once=(2,), compiler="eager")
ALONE = [*gpu.VARIANTS, "plain .to(device)"]


def told(rows: list[Row]) -> list[str]:
    """The baselines, all of which were measured."""
    assert all(row["ratio"] > 0 and row["ours_s"] > 0 for row in rows)
    return [row["baseline"] for row in rows]


def test_steps_and_feed_are_compared() -> None:
    assert told([*gpu.steps(LOAD, BACKBONE, 8), gpu.feeding(LOAD, BACKBONE, 8)]) == ALONE


@pytest.mark.slow
@pytest.mark.long
def test_every_comparison_runs() -> None:
    assert told(gpu.rows(LOAD)) == [*ALONE, "one at a time", "epoch without"]
