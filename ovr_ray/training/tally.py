"""Logits, labels and losses of an epoch, without waiting for the device that computes them."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from torch import distributed

from ovr_ray.model import Confusion
from ovr_ray.recipe import Split

AGE: Final = 2
"""Copies of the loss that may be under way to the host; the one before them is looked at."""

AGREE_EVERY: Final = 16
"""Steps after which several workers add up their losses."""


class LossWatch:
    """Notices that training losses are no longer finite numbers, without making a GPU wait.

    The losses are added up on their device; a sum that is not finite stays so. After a step, a copy of the sum follows
    it to the host, where it is looked at two steps later: the queue of the GPU never runs empty.

    Parameters
    ----------
    device : torch.device
    workers : int
        Processes of ``torch.distributed`` that train together. If one gives up, all must, as the others would wait for
        it: they look at the same sum, at the same step.
    """

    def __init__(self, device: torch.device, workers: int = 1) -> None:
        self._workers, self._every = workers, 1 if workers == 1 else AGREE_EVERY
        self._sum = torch.zeros((), device=device)
        self._is_cuda = device.type == "cuda"
        self._copies = torch.zeros(AGE + 1, pin_memory=self._is_cuda)
        self._on_host = self._copies.numpy()  # the same memory
        self._arrivals = [torch.cuda.Event() for _ in self._copies] if self._is_cuda else []
        self._steps = self._sent = self._seen = 0

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro-batch, a scalar on the device."""
        self._sum += loss

    def after_step(self) -> float:
        """Return the latest sum that is known: finite, or a sign that a loss was not."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._send()
        return self._look(behind=AGE)

    def at_end(self) -> float:
        """Return the sum of the epoch's losses; waits for the device."""
        self._send()
        return self._look(behind=0)

    def _send(self) -> None:
        total = self._sum
        if self._workers > 1:
            total = total.clone()
            distributed.all_reduce(total)
        place = self._sent % len(self._copies)
        self._copies[place].copy_(total, non_blocking=self._is_cuda)
        if self._is_cuda:
            self._arrivals[place].record()
        self._sent += 1

    def _look(self, behind: int) -> float:
        latest = 0.0
        while self._seen < self._sent - behind and math.isfinite(latest):
            place = self._seen % len(self._copies)
            if self._is_cuda:
                self._arrivals[place].synchronize()
            latest = float(self._on_host[place])
            self._seen += 1
        return latest


class Tally:
    """Logits, labels and losses of an epoch's batches, kept on their device until they are needed.

    They are kept in one buffer: small tensors between the large ones that each step frees would fragment the heap.

    Attributes
    ----------
    images : int
        Number of images so far.
    """

    def __init__(self) -> None:
        self.images = 0
        self._rows = torch.empty(3, 0)

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a batch: logits and labels, float (N), and its mean loss, a scalar."""
        start, end = self.images, self.images + len(labels)
        if end > self._rows.shape[1]:
            larger = logits.new_empty(3, max(1024, 2 * end), dtype=torch.float32)
            larger[:, :start] = self._rows[:, :start]
            self._rows = larger
        self._rows[:, start:end] = torch.stack([logits, labels, loss.expand_as(logits)])
        self.images = end

    def truth(self) -> np.ndarray:
        """Return the labels, float32 (N)."""
        return self._rows[1, : self.images].cpu().numpy()

    def probability(self) -> np.ndarray:
        """Return the probabilities, float64 (N)."""
        return self._rows[0, : self.images].cpu().double().sigmoid().numpy()

    def gathered(self) -> Tally:
        """Return one tally of all ranks; every rank gets it."""
        of_ranks: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(of_ranks, self._rows[:, : self.images].cpu())
        total = Tally()
        total._rows = torch.cat(of_ranks, 1)
        total.images = total._rows.shape[1]
        return total

    def metrics(self, split: Split) -> dict[str, Any]:
        """Return the mean loss, and the confusion counts at probability 0.5, under names that begin with the split."""
        confusion = Confusion.of(self.truth(), self.probability() >= 0.5)
        counts = {f"{split}_{name}": count for name, count in confusion.counts().items()}
        return {f"{split}_loss": self._rows[2, : self.images].cpu().double().mean().item(), **counts}
