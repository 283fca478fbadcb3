"""What benchmarks share: two things timed in turn, in processes of their own if need be, and a row about it."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
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
"""name, baseline, ratio (above 1: ours is better), goal, runs, ours_s, baseline_s, and what else there is to tell."""


@dataclass(frozen=True)
class Machine:
    """Where figures come from."""

    processor: str
    cores: int
    load: float
    python: str
    versions: dict[str, str]


def machine() -> dict[str, Any]:
    """This one, and how busy it was when the benchmarks began."""
    told = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {name: version(name) for name in ("torch", "torchvision", "ray", "onnxruntime", "numpy")}
    processor = told[0].partition(": ")[2] if told else platform.machine()
    load = os.getloadavg()[0]
    return asdict(Machine(processor, os.cpu_count() or 1, load, platform.python_version(), versions))


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Of one call, the mean of so many."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def in_turn(
    works: dict[str, Callable[[], object]], times: int = 1, runs: int = RUNS, warm: int = 3
) -> dict[str, float]:
    """Median seconds of each work, all of them warmed up, then run A B C A B C …

    Parameters
    ----------
    works : dict of str to callable
    times : int
        Calls a run.
    runs : int
    warm : int
        Calls before the first run: TorchScript compiles on the first ones.
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
    """One comparison of two medians, in seconds for the same work."""
    figures = {"ratio": round(theirs / ours, 3), "goal": goal, "runs": runs, "ours_s": ours, "baseline_s": theirs}
    return {"name": name, "baseline": baseline, **figures, "torch_threads": torch.get_num_threads(), **more}


@contextmanager
def process(side: Callable[..., None], *what: Any) -> Iterator[Connection]:
    """One side, waiting in a process of its own; yields the pipe that asks it for runs."""
    here, there = multiprocessing.Pipe()
    running = multiprocessing.get_context("spawn").Process(target=side, args=(there, *what))
    running.start()
    there.close()  # so that its end is told, not waited for
    try:
        yield here
    finally:
        running.terminate()
        running.join()
