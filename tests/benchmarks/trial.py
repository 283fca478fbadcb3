"""The time of a trial's training step, against a plain loop with PyTorch's defaults on the same network and batch."""

from __future__ import annotations

import resource
from multiprocessing.connection import Connection
from statistics import median

import torch
from torch import nn

from ovr_ray.model import SubModel, build
from ovr_ray.recipe import Config
from ovr_ray.training import Trainer, keep_pages
from tests.benchmarks.measure import Row, process, row, seconds

LONG = True
BATCH, STEPS, RUNS, GOAL = 32, 2, 5, 1.6
NETWORKS, SIZES, THREADS = ("efficientnet_lite0", "resnet18"), (150, 224), (1, 2)


def rows() -> list[Row]:
    """Compare in turn, each side in a process of its own, because kept pages cannot be given back."""
    return [_compared(n, size, threads) for n in NETWORKS for size in SIZES for threads in THREADS]


def _compared(network: str, size: int, threads: int) -> Row:
    taken: dict[str, list[float]] = {"trial": [], "plain loop": []}
    peaks = {}
    with process(_trial, network, size, threads) as ours, process(_plain, network, size, threads) as theirs:
        for _ in range(RUNS + 1):
            for name, side in (("trial", ours), ("plain loop", theirs)):
                side.send(None)
                spent, peaks[name] = side.recv()
                taken[name].append(spent)
    ours_s, theirs_s = (median(times[1:]) for times in taken.values())  # the first one warms up
    name = f"step, {network}, {size} px, {threads} thread{'s' if threads > 1 else ''}"
    more = {"images_per_s": round(BATCH * STEPS / ours_s, 1), "peak_mb": peaks, "torch_threads": threads}
    return row(name, "plain loop", ours_s, theirs_s, GOAL, RUNS, **more)


def _trial(pipe: Connection, network: str, size: int, threads: int) -> None:
    """Train as a trial's process does: the images are bytes, and an epoch has STEPS batches."""
    keep_pages()
    torch.set_num_threads(threads)
    sub_model = SubModel(build(network, size), size, size, 1, [0.5], [0.25])
    config = Config(backbone=network, optimizer="adam", schedule="constant")
    trainer = Trainer(sub_model, config, pos_weight=3.0, max_epochs=1000, device=torch.device("cpu"))
    images, labels = data(size)
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    epochs = trainer.epochs(lambda epoch: batches, lambda: [(images[:4], labels[:4])], len(images))
    while True:
        pipe.recv()
        pipe.send((len(images) / next(epochs)["images_per_s"], _peak_mb()))


def _plain(pipe: Connection, network: str, size: int, threads: int) -> None:
    """Train in a plain loop: the images are normalised floats, which costs this side nothing."""
    torch.set_num_threads(threads)
    net, loss_of = build(network, size).network.train(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))
    optimizer = torch.optim.Adam(net.parameters())
    images, labels = data(size)
    inputs = ((images.float() / 255 - 0.5) / 0.25).expand(-1, 3, -1, -1)

    def epoch() -> None:
        for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(net(x).flatten(), y).backward()
            optimizer.step()

    while True:
        pipe.recv()
        pipe.send((seconds(epoch), _peak_mb()))


def data(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random bytes, and labels of which a quarter is positive."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (STEPS * BATCH, 1, size, size), dtype=torch.uint8)
    return images, torch.arange(STEPS * BATCH) % 4 // 3.0


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
