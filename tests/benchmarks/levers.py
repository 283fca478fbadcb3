"""The effect of each lever on a plain training step, and the operators that a trial's step spends its time on.

It is run by ``python -m tests.benchmarks.levers [--profile]``. The levers are those that a trial uses, or might use, on
a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ovr_ray.model import build
from ovr_ray.training import keep_pages
from tests.benchmarks.measure import process, seconds
from tests.benchmarks.trial import BATCH, data

NETWORKS, SIZE, RUNS = ("efficientnet_lite0", "resnet18"), 224, 5
LEVERS = ("none", "channels_last", "pages", "channels_last pages", "fused", "compile", "channels_last pages compile")
"""Changes of PyTorch's defaults; a space joins several that are made together."""


def step_of(network: str, levers: str) -> Callable[[], None]:
    """Return a function that takes a step with Adam on one batch, in this process and on one thread."""
    torch.set_num_threads(1)
    if "pages" in levers:
        keep_pages()
    net, loss_of = build(network, SIZE).network.train(), nn.BCEWithLogitsLoss()
    images, labels = (tensor[:BATCH] for tensor in data(SIZE))
    inputs = ((images.float() / 255 - 0.5) / 0.25).expand(-1, 3, -1, -1).contiguous()
    if "channels_last" in levers:
        net, inputs = net.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), fused="fused" in levers)
    forward: Any = torch.compile(net) if "compile" in levers else net

    def step() -> None:
        optimizer.zero_grad()
        loss_of(forward(inputs).flatten(), labels).backward()
        optimizer.step()

    return step


def _serve(pipe: Connection, network: str, levers: str) -> None:
    step = step_of(network, levers)
    while True:
        pipe.recv()
        pipe.send(seconds(step))


def compared(network: str, levers: str) -> tuple[float, float, float]:
    """Return the seconds of a step with and without the levers, medians of runs in turn, and of the first one with."""
    taken: tuple[list[float], list[float]] = [], []
    with process(_serve, network, levers) as ours, process(_serve, network, "none") as theirs:
        for _ in range(RUNS + 2):
            for side, times in zip((ours, theirs), taken, strict=True):
                side.send(None)
                times.append(side.recv())
    return median(taken[0][2:]), median(taken[1][2:]), taken[0][0]


def profiled(network: str) -> Table:
    """Return the operators of a step with a trial's levers, by the time that they themselves take."""
    step = step_of(network, "channels_last pages")
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    table = Table("operator", "calls", "ms", "share", title=f"{network}, {SIZE} px, a batch of {BATCH}")
    for event in events[:8]:
        own = event.self_cpu_time_total
        table.add_row(event.key, str(event.count), f"{own / 1000:.0f}", f"{own / whole:.0%}")
    return table


def main() -> None:
    """Print the table of levers, or the profiles."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.levers", description=__doc__)
    parser.add_argument("--profile", action="store_true")
    if parser.parse_args().profile:
        for network in NETWORKS:
            Console().print(profiled(network))
        return
    table = Table("network", "lever", "with", "without", "ratio", "first step")
    for network in NETWORKS:
        for levers in LEVERS[1:]:
            ours, theirs, first = compared(network, levers)
            cells = [f"{1000 * ours:.0f} ms", f"{1000 * theirs:.0f} ms", f"{theirs / ours:.2f}", f"{first:.1f} s"]
            table.add_row(network, levers, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
