"""Torch on two threads beside other programs, with our wait of OpenMP's threads and with the default one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from statistics import median
from typing import Final
from unittest import mock

import torch

from ovr_ray import SPIN_COUNT
from ovr_ray.model import build
from tests.benchmarks.measure import Row, process, row, seconds

LONG = True
RUNS: Final = 5
SIZE: Final = 128
THREADS: Final = 2
WORKS: Final = ("one image", "32 images", "training step")
NETWORKS: Final = ("efficientnet_lite0", "resnet18")
NEIGHBOURS: Final = ("none", "a spinning process", "torch on two threads")
VARIABLE: Final = "GOMP_SPINCOUNT"


def rows(settings: tuple[str | None, ...] = (SPIN_COUNT, None)) -> list[Row]:
    """Compare values of ``GOMP_SPINCOUNT`` with the last one; None is OpenMP's default."""
    return [row for network in NETWORKS for neighbour in NEIGHBOURS for row in _compared(network, neighbour, settings)]


def _compared(network: str, neighbour: str, settings: tuple[str | None, ...]) -> Iterator[Row]:
    taken: dict[tuple[str | None, str], list[float]] = {(s, work): [] for s in settings for work in WORKS}
    with ExitStack() as stack:
        sides = {setting: stack.enter_context(_started(_torch, setting, network)) for setting in settings}
        for side in sides.values():
            for work in WORKS:
                side.send(work)  # warms up
                side.recv()
        stack.enter_context(_neighbour(neighbour))
        for _ in range(RUNS):
            for (setting, work), times in taken.items():
                sides[setting].send(work)
                times.append(sides[setting].recv())
    for setting in settings[:-1]:
        for work in WORKS:
            ours, theirs = median(taken[setting, work]), median(taken[settings[-1], work])
            goal = 0.97 if neighbour == "none" else 1.0
            name = f"{work}, {network}, beside: {neighbour}"
            more = {"setting": setting, "torch_threads": THREADS}
            yield row(name, f"{VARIABLE}={settings[-1]}", ours, theirs, goal, RUNS, **more)


@contextmanager
def _started(side: Callable[..., None], setting: str | None, *what: str) -> Iterator[Connection]:
    """Start a side with this setting, which OpenMP reads when torch is loaded."""
    with mock.patch.dict(os.environ):
        for name in (VARIABLE, "OMP_NUM_THREADS"):
            os.environ.pop(name, None)
        if setting is not None:
            os.environ[VARIABLE] = setting
        with process(side, *what) as pipe:
            yield pipe


@contextmanager
def _neighbour(kind: str) -> Iterator[None]:
    if kind == "none":
        yield
        return
    with _started(_spin if kind == "a spinning process" else _load, None) as pipe:
        pipe.recv()
        yield


def _torch(pipe: Connection, name: str) -> None:
    torch.set_num_threads(THREADS)
    network = build(name, SIZE).network.to(memory_format=torch.channels_last)
    images = torch.rand(32, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())

    def infer(count: int) -> None:
        network.eval()
        with torch.inference_mode():
            network(images[:count])

    def train() -> None:
        network.train()
        optimizer.zero_grad()
        network(images[:16]).sum().backward()
        optimizer.step()

    works = dict(zip(WORKS, (lambda: infer(1), lambda: infer(32), train), strict=True))
    times = dict(zip(WORKS, (20, 3, 2), strict=True))
    while True:
        work = pipe.recv()
        pipe.send(seconds(works[work], times[work]))


def _spin(pipe: Connection) -> None:
    pipe.send("spinning")
    while True:
        pass


def _load(pipe: Connection) -> None:
    torch.set_num_threads(THREADS)
    matrix = torch.rand(600, 600)
    pipe.send("loaded")
    while True:
        matrix = (matrix @ matrix).clamp(0, 1)
