"""The time of an epoch's batches: the feed against a gather in memory, and against decoding PNGs every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import torch
from PIL import Image
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.data.extensions import ArrowTensorArray
from torch.utils.data import DataLoader, Dataset

from ovr_ray import cluster
from ovr_ray.images import Feed, ImageSet, LabelTable, load
from ovr_ray.recipe import Augment, Data
from tests.benchmarks.measure import Row, in_turn, row
from tests.benchmarks.predict import write_images

LONG = False
IMAGES, BATCH, BLOCK, RUNS = 2048, 32, 256, 7
GOALS = {"memory": 1.0, "memory-numpy": 1.0, "ray-data-iterator": 1.0, "png-dataloader": 10.0}


def rows() -> list[Row]:
    """Compare on gray PNGs of 300 x 300 pixels at two sizes: batches of 32, both flips, one torch thread per trial."""
    result = []
    with tempfile.TemporaryDirectory() as folder, cluster.connected():
        files = [Path(file).name for file in write_images(Path(folder), IMAGES)]
        for size in (224, 300):
            data = Data(labels="", images=folder, image_size=size)
            table = LabelTable(pd.Series(files), pd.DataFrame({"a": [0.0, 1.0] * (IMAGES // 2)}), _all_but_two(files))
            images, _ = load(table, data, folder, memory=1e9)
            trials = [ray.remote(num_cpus=0)(Trial).remote(images, table, folder, size) for _ in range(2)]
            for count in (1, 2):
                result += _compared(trials[:count], size)
            for trial in trials:
                ray.kill(trial)
    return result


def _all_but_two(files: list[str]) -> pd.Series:
    """Return the splits: both classes have to be in validation, too."""
    return pd.Series(["train"] * (len(files) - 2) + ["val"] * 2)


def _compared(trials: list[Any], size: int) -> list[Row]:
    def at_the_same_time(kind: str) -> None:
        ray.get([trial.epoch.remote(kind) for trial in trials])

    taken = in_turn({kind: partial(at_the_same_time, kind) for kind in ("feed", *GOALS)}, runs=RUNS, warm=1)
    name = f"feed, {size} px, {len(trials)} trial{'s' if len(trials) > 1 else ''}"
    rate = len(trials) * IMAGES / taken["feed"]
    more = {"images": IMAGES, "batch": BATCH, "torch_threads": 1, "images_per_s": round(rate)}
    return [row(name, kind, taken["feed"], taken[kind], goal, RUNS, **more) for kind, goal in GOALS.items()]


class Trial:
    """A process with a trial's feed, and with the loops that the feed is compared with."""

    def __init__(self, images: ImageSet, table: LabelTable, folder: str, size: int) -> None:
        torch.set_num_threads(1)
        self.number = 0
        self.feed = Feed(images, np.zeros(len(table.files), np.float32), BATCH)
        (window,) = images.windows(np.ones(len(table.files), bool), None)
        pixels = np.stack(list(window.values()))
        self.images = torch.from_numpy(pixels)
        blocks = [  # several, as after decoding; with one large block the iterator took four times as long
            pa.table({"row": rows, "image": ArrowTensorArray.from_numpy(pixels[rows])})
            for rows in np.array_split(np.arange(IMAGES), IMAGES // BLOCK)
        ]
        self.dataset = ray.data.from_arrow(blocks).materialize()
        decoding = Decoding(folder, table.files.tolist(), size)
        self.loader = DataLoader(decoding, BATCH, shuffle=True, num_workers=2, persistent_workers=True)

    def epoch(self, kind: str) -> None:
        """Take every batch once, and drop it."""
        self.number += 1
        own = {"feed": self._feed, "memory": self._memory, "memory-numpy": self._numpy}
        for batch in (own | {"ray-data-iterator": self._ray, "png-dataloader": self._png})[kind]():
            assert batch.dtype == torch.uint8

    def _feed(self) -> Iterator[torch.Tensor]:
        for images, _ in self.feed.shuffled(self.number, 0, Augment()):
            yield images

    def _memory(self) -> Iterator[torch.Tensor]:
        for chosen in torch.randperm(len(self.images)).split(BATCH):
            batch = self.images[chosen]
            for side in (-1, -2):
                flipped = torch.rand(len(batch)) < 0.5
                batch[flipped] = batch[flipped].flip(side)
            yield batch

    def _numpy(self) -> Iterator[torch.Tensor]:
        images, rng = self.images.numpy(), np.random.default_rng()
        for chosen in np.split(rng.permutation(len(images)), range(BATCH, len(images), BATCH)):
            batch = images[chosen]
            horizontal, vertical = rng.random((2, len(batch))) < 0.5
            batch[horizontal] = batch[horizontal][..., ::-1]
            batch[vertical] = batch[vertical][..., ::-1, :]
            yield torch.from_numpy(batch)

    def _ray(self) -> Iterator[torch.Tensor]:
        rng = np.random.default_rng([self.number])
        flips = rng.random((IMAGES, 2)) < 0.5
        how: dict[str, Any] = {"local_shuffle_buffer_size": IMAGES, "local_shuffle_seed": self.number}
        yield from self.dataset.iter_torch_batches(batch_size=BATCH, collate_fn=Flipping(flips), **how)

    def _png(self) -> Iterator[torch.Tensor]:
        yield from self.loader


class Flipping(NumpyBatchCollateFn):
    """Flips a batch of the iterator, which calls this in threads of its own."""

    def __init__(self, flips: np.ndarray) -> None:
        self.flips = flips

    def __call__(self, batch: dict[str, np.ndarray]) -> torch.Tensor:
        images = batch["image"].copy()
        horizontal, vertical = self.flips[batch["row"]].T
        images[horizontal] = images[horizontal, :, :, ::-1]
        images[vertical] = images[vertical, :, ::-1]
        return torch.from_numpy(images)


class Decoding(Dataset[torch.Tensor]):
    """Decodes and flips an image whenever it is wanted."""

    def __init__(self, folder: str, files: list[str], size: int) -> None:
        self.folder, self.files, self.size = folder, files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: int) -> torch.Tensor:
        image = Image.open(f"{self.folder}/{self.files[at]}").convert("L")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))[None]
        for side in (-1, -2):
            if torch.rand(()) < 0.5:
                pixels = pixels.flip(side)
        return pixels
