"""From decoded images to a task's batches: shuffled and changed anew each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ovr_ray.images.augment import augmented
from ovr_ray.images.image_set import Images, ImageSet
from ovr_ray.recipe import Augment

CPU = torch.device("cpu")

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8 (N, C, H, W), and labels, float32 (N)."""


@dataclass
class Feed:
    """One task's batches from an image set. Starts no Ray task.

    Parameters
    ----------
    images : ImageSet
    labels : ndarray of float32
        The task's label of every row of the label table; rows with NaN are left out.
    batch_size : int
    device : torch.device
        Where batches go, and are augmented.
    """

    images: ImageSet
    labels: np.ndarray
    batch_size: int
    device: torch.device = CPU

    def __len__(self) -> int:
        """Images of an epoch."""
        return int(np.isfinite(self.labels).sum())

    def ordered(self) -> Iterator[Batch]:
        """Every image once, as it is, in an order that is always the same."""
        return _ahead(self._batches(None), self.device)

    def shuffled(self, epoch: int, seed: int, augment: Augment) -> Iterator[Batch]:
        """Every image once, in an order and with changes that follow from the seed and the epoch alone."""
        rng, changes = (np.random.default_rng([seed, epoch, what]) for what in range(2))
        for images, labels in _ahead(self._batches(rng), self.device):
            yield augmented(images, augment, changes), labels

    def _batches(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        left: Images = {}
        for window in self.images.windows(np.isfinite(self.labels), rng):
            window = left | window
            rows = np.fromiter(window, np.int64, len(window))
            if rng is not None:
                rows = rng.permutation(rows)
            whole = len(rows) // self.batch_size * self.batch_size
            for start in range(0, whole, self.batch_size):
                yield self._batch(window, rows[start : start + self.batch_size])
            left = {row: window[row].copy() for row in rows[whole:]}  # a view would hold all of its shard
            del window  # or it would be held while the next but one is read
        if left:
            yield self._batch(left, np.fromiter(left, np.int64, len(left)))

    def _batch(self, window: Images, rows: np.ndarray) -> Batch:
        first = window[rows[0]]
        images = torch.empty((len(rows), *first.shape), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        np.stack([window[row] for row in rows], out=images.numpy())
        return images, torch.from_numpy(self.labels[rows])


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; a GPU copies the next one while it works on this one."""
    if device.type != "cuda":
        for images, labels in batches:
            yield images.to(device), labels.to(device)
        return
    copying, working, held = torch.cuda.Stream(device), torch.cuda.current_stream(device), None
    for images, labels in batches:
        with torch.cuda.stream(copying):
            coming = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if held is not None:
            yield held
        working.wait_stream(copying)
        for part in coming:
            part.record_stream(working)
        held = coming
    if held is not None:
        yield held
