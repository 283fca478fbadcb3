"""Training on one GPU: precisions and memory formats, the way of images to it, and several trials at the same time.

It is run by ``python -m tests.benchmarks --gpu``. Trials compute in ``channels_last``, in the precision that ``auto``
means on this GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
import torch

from ovr_ray.images import Feed, ImageSet
from ovr_ray.model import SubModel, build
from ovr_ray.recipe import Augment, Config, Precision
from ovr_ray.training import Trainer
from tests.benchmarks.checkpoints import saving
from tests.benchmarks.measure import Row, in_turn, process, row


@dataclass(frozen=True)
class Load:
    """The sizes that are measured; a test measures smaller ones.

    Attributes
    ----------
    device : str
    networks : tuple of str
    size : int
        Pixels a side.
    batches : tuple of int
        Batch sizes.
    steps : int
        Steps per epoch; a run is an epoch.
    runs : int
    at_once : tuple of int
        Numbers of trials that share the device.
    compiler : str
        A backend of ``torch.compile``.
    """

    device: str = "cuda"
    networks: tuple[str, ...] = ("efficientnet_lite0", "resnet18")
    size: int = 224
    batches: tuple[int, ...] = (32, 128)
    steps: int = 30
    runs: int = 5
    at_once: tuple[int, ...] = (2, 4)
    compiler: str = "inductor"


@dataclass(frozen=True)
class Variant:
    """A way to train a network."""

    precision: Precision
    memory_format: torch.memory_format = torch.channels_last
    compiled: bool = False


OURS = Variant("auto")
VARIANTS = {
    "fp32, contiguous": Variant("fp32", torch.contiguous_format),
    "fp32": Variant("fp32"),
    "tf32": Variant("tf32"),
    "bf16": Variant("bf16"),
    "bf16, contiguous": Variant("bf16", torch.contiguous_format),
    "auto, torch.compile": Variant("auto", compiled=True),
}


def rows(load: Load = Load()) -> list[Row]:
    """Compare steps, feed, sharing and checkpoints, for every network."""
    torch.backends.cudnn.benchmark = True
    result = []
    for network in load.networks:
        for batch in load.batches:
            result += steps(load, network, batch)
            result.append(feeding(load, network, batch))
        result += [sharing(load, network, load.batches[0], count) for count in load.at_once]
        result.append(saving(network, load.device, load.size, load.runs))
    return [each | {"gpu": torch.cuda.get_device_name()} if load.device == "cuda" else each for each in result]


def steps(load: Load, network: str, batch: int) -> list[Row]:
    """Compare ways to train, with images that are on the device already and are not flipped."""
    images, labels = (tensor.to(load.device) for tensor in _data(load, batch))
    batches = list(zip(images.split(batch), labels.split(batch), strict=True))
    works = {
        name: _epochs(_trainer(load, network, variant), lambda: batches, len(labels))
        for name, variant in ({"ours": OURS} | VARIANTS).items()
    }
    taken = in_turn(works, runs=load.runs, warm=2)
    more = {"images_per_s": round(len(labels) / taken["ours"]), "batch": batch}
    return [
        row(f"step, {network}, batch {batch}", name, taken["ours"], taken[name], 1.0, load.runs, **more)
        for name in VARIANTS
    ]


def feeding(load: Load, network: str, batch: int) -> Row:
    """Compare pinned memory, copied during the step before and flipped there, with flips here and ``.to(device)``."""
    images, labels = _data(load, batch)
    held = cast(ImageSet, Held(images.numpy()))
    works = {}
    for name, device in (("ours", load.device), ("plain", "cpu")):
        feed = Feed(held, labels.numpy(), batch, torch.device(device))
        shuffled = partial(feed.shuffled, 1, 0, Augment())
        works[name] = _epochs(_trainer(load, network, OURS), shuffled, len(labels))
    taken = in_turn(works, runs=load.runs, warm=2)
    rate = round(len(labels) / taken["ours"])
    name = f"feed and step, {network}, batch {batch}"
    return row(name, "plain .to(device)", taken["ours"], taken["plain"], 1.0, load.runs, images_per_s=rate, batch=batch)


def sharing(load: Load, network: str, batch: int, count: int) -> Row:
    """Compare epochs of processes that share the GPU: all at the same time, against one after the other."""
    with ExitStack() as stack:
        trials = [stack.enter_context(process(_trial, load, network, batch)) for _ in range(count)]

        def ask(some: list[Connection]) -> None:
            for trial in some:
                trial.send(None)
            for trial in some:
                trial.recv()

        def ask_each() -> None:
            for trial in trials:
                ask([trial])

        works: dict[str, Callable[[], object]] = {"at once": partial(ask, trials), "alone": ask_each}
        taken = in_turn(works, runs=load.runs, warm=2)
    rate = round(count * load.steps * batch / taken["at once"])
    name = f"{count} trials on one GPU, {network}, batch {batch}"
    return row(name, "one at a time", taken["at once"], taken["alone"], 1.0, load.runs, images_per_s=rate, batch=batch)


def _trial(pipe: Connection, load: Load, network: str, batch: int) -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(1)
    images, labels = _data(load, batch)
    feed = Feed(cast(ImageSet, Held(images.numpy())), labels.numpy(), batch, torch.device(load.device))
    epoch = _epochs(_trainer(load, network, OURS), partial(feed.shuffled, 1, 0, Augment()), len(labels))
    while True:
        pipe.recv()
        epoch()
        pipe.send(None)


def _trainer(load: Load, network: str, variant: Variant) -> Trainer:
    torch.manual_seed(0)
    sub_model = SubModel(build(network, load.size), load.size, load.size, 1, [0.5], [0.25])
    config = Config(backbone=network, precision=variant.precision, schedule="constant")
    trainer = Trainer(sub_model, config, pos_weight=1.0, max_epochs=10_000, device=torch.device(load.device))
    sub_model.to(memory_format=variant.memory_format)
    if variant.compiled:
        sub_model.compile(backend=load.compiler)
    return trainer


def _epochs(trainer: Trainer, batches: Callable[[], Any], images: int) -> Callable[[], object]:
    """Return a function that trains an epoch and waits for its metrics, so for the GPU; four images are validated."""
    pixels, labels = next(iter(batches()))
    few = [(pixels[:4], labels[:4])]
    return partial(next, trainer.epochs(lambda epoch: batches(), lambda: few, images))


def _data(load: Load, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (load.steps * batch, 1, load.size, load.size), dtype=torch.uint8)
    return images, torch.arange(len(images)) % 2 * 1.0


class Held:
    """Decoded images in the memory of this process, for the feed."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = dict(enumerate(images))

    def windows(self, wanted: np.ndarray, rng: np.random.Generator | None) -> Iterator[dict[int, np.ndarray]]:
        """Yield all images in one window, as an image set in memory does."""
        yield self._images
