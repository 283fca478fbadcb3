"""The GPU's benchmark on a CPU, at sizes that tell nothing of speed, so that it is right the first time on a GPU."""

from __future__ import annotations

from tests.benchmarks import gpu
from tests.conftest import BACKBONE


def test_every_comparison_runs() -> None:
    load = gpu.Load("cpu", (BACKBONE,), size=32, batches=(8,), steps=2, runs=1, at_once=(2,), compiler="eager")
    found = gpu.rows(load)
    assert [row["baseline"] for row in found] == [
        *gpu.VARIANTS,
        "plain .to(device)",
        "one at a time",
        "epoch without",
    ]
    assert all(row["ratio"] > 0 and row["ours_s"] > 0 for row in found)
