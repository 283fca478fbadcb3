"""A task's batches of decoded images, shuffled and augmented differently in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ovr_ray.images.augment import augmented
from ovr_ray.images.image_set import ImageSet
from ovr_ray.images.shards import Images
from ovr_ray.recipe import Augment

CPU = torch.device("cpu")

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8 (N, C, H, W), and their labels, float32 (N)."""


@dataclass
class Feed:
    """One task's batches of an image set. No method starts a Ray task.

    Parameters
    ----------
    images : ImageSet
    labels : ndarray of float32
        The task's label of every row of the label table; rows with NaN are left out of the batches.
    batch_size : int
    device : torch.device
        Device that receives the batches and augments them.
    """

    images: ImageSet
    labels: np.ndarray
    batch_size: int
    device: torch.device = CPU

    def __len__(self) -> int:
        """Return the number of images per epoch."""
        return int(np.isfinite(self.labels).sum())

    def ordered(self) -> Iterator[Batch]:
        """Yield every image once, unchanged, always in the same order."""
        return _on_device(self._batches(None), self.device)

    def shuffled(self, epoch: int, seed: int, augment: Augment) -> Iterator[Batch]:
        """Yield every image once; its place and its augmentation depend on the seed and the epoch only."""
        rng, changes = (np.random.default_rng([seed, epoch, stream]) for stream in range(2))
        for images, labels in _on_device(self._batches(rng), self.device):
            yield augmented(images, augment, changes), labels

    def _batches(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        remainder: Images = {}
        for window in self.images.windows(np.isfinite(self.labels), rng):
            window = remainder | window
            rows = np.fromiter(window, np.int64, len(window))
            if rng is not None:
                rows = rng.permutation(rows)
            full = len(rows) // self.batch_size * self.batch_size
            for start in range(0, full, self.batch_size):
                yield self._batch(window, rows[start : start + self.batch_size])
            remainder = {row: window[row].copy() for row in rows[full:]}  # a view would keep its whole shard in memory
            del window  # otherwise it would stay in memory while the window after the next is read
        if remainder:
            yield self._batch(remainder, np.fromiter(remainder, np.int64, len(remainder)))

    def _batch(self, window: Images, rows: np.ndarray) -> Batch:
        first = window[rows[0]]
        images = torch.empty((len(rows), *first.shape), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        np.stack([window[row] for row in rows], out=images.numpy())
        return images, torch.from_numpy(self.labels[rows])


def _on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on the device; a GPU copies the next batch while it computes with this one."""
    if device.type != "cuda":
        for images, labels in batches:
            yield images.to(device), labels.to(device)
        return
    copying, computing, ready = _copy_stream(device), torch.cuda.current_stream(device), None
    for images, labels in batches:
        with torch.cuda.stream(copying):
            copied = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if ready is not None:
            yield ready
        computing.wait_stream(copying)
        for tensor in copied:
            tensor.record_stream(computing)
        ready = copied
    if ready is not None:
        yield ready


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of this process that copies: the memory of a new one in each epoch would add up."""
    return torch.cuda.Stream(device)
