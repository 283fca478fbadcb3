"""Helpers of the benchmarks: work timed in turn with its baseline, processes of their own, and rows of results."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

RUNS = 7

Row = dict[str, Any]
"""A comparison: name, baseline, ratio (above 1: ours is better), goal, runs, ours_s, baseline_s, and more facts."""


@dataclass(frozen=True)
class Machine:
    """The machine that figures come from."""

    processor: str
    cores: int
    load: float
    python: str
    versions: dict[str, str]


def machine() -> dict[str, Any]:
    """Return the facts of this machine, and its load when the benchmarks began."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {name: version(name) for name in ("torch", "torchvision", "ray", "onnxruntime", "numpy")}
    processor = models[0].partition(": ")[2] if models else platform.machine()
    load = os.getloadavg()[0]
    return asdict(Machine(processor, os.cpu_count() or 1, load, platform.python_version(), versions))


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return the seconds that one call takes: the mean of ``times`` calls."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def in_turn(
    works: Mapping[str, Callable[[], object]], times: int = 1, runs: int = RUNS, warm: int = 3
) -> dict[str, float]:
    """Return the median seconds of each work; after a warm-up they run in turn, A B C A B C …

    Parameters
    ----------
    works : mapping of str to callable
    times : int
        Calls per run.
    runs : int
    warm : int
        Calls of each work before the first run: TorchScript compiles in the first ones.
    """
    for work in works.values():
        for _ in range(warm):
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            taken[name].append(seconds(work, times))
    return {name: median(each) for name, each in taken.items()}


def row(name: str, baseline: str, ours: float, theirs: float, goal: float, runs: int = RUNS, **more: Any) -> Row:
    """Return the comparison of two medians, in seconds for the same work."""
    figures = {"ratio": round(theirs / ours, 3), "goal": goal, "runs": runs, "ours_s": ours, "baseline_s": theirs}
    return {"name": name, "baseline": baseline, **figures, "torch_threads": torch.get_num_threads(), **more}


@contextmanager
def process(side: Callable[..., None], *what: Any) -> Iterator[Connection]:
    """Start one side in a process of its own, and yield the pipe that asks it for runs."""
    here, there = multiprocessing.Pipe()
    running = multiprocessing.get_context("spawn").Process(target=side, args=(there, *what))
    running.start()
    there.close()  # otherwise its end would not be noticed here, and recv would wait forever
    try:
        yield here
    finally:
        running.terminate()
        running.join()
