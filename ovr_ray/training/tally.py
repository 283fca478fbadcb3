"""Logits, labels and losses of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import distributed

from ovr_ray.model import Confusion
from ovr_ray.recipe import Split


class Tally:
    """Logits, labels and losses of an epoch's batches, kept on their device until they are needed.

    They are kept in one buffer: small tensors between the large ones that each step frees would fragment the heap.
    """

    def __init__(self) -> None:
        self._ends: list[int] = [0]
        self._looked_at = 0
        self._rows = torch.empty(3, 0)

    @property
    def images(self) -> int:
        """Number of images so far."""
        return self._ends[-1]

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a batch: logits and labels, float (N), and its mean loss, a scalar."""
        start, end = self.images, self.images + len(labels)
        if end > self._rows.shape[1]:
            larger = logits.new_empty(3, max(1024, 2 * end), dtype=torch.float32)
            larger[:, :start] = self._rows[:, :start]
            self._rows = larger
        self._rows[:, start:end] = torch.stack([logits, labels, loss.expand_as(logits)])
        self._ends.append(end)

    def new_losses(self, behind: int) -> list[torch.Tensor]:
        """Return the losses not yet returned, except those of the latest ``behind`` batches."""
        first, self._looked_at = self._looked_at, max(self._looked_at, len(self._ends) - 1 - behind)
        return [self._rows[2, start].clone() for start in self._ends[first : self._looked_at]]

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
        total._ends.append(total._rows.shape[1])
        return total

    def metrics(self, split: Split) -> dict[str, Any]:
        """Return the mean loss, and the confusion counts at probability 0.5, under names that begin with the split."""
        confusion = Confusion.of(self.truth(), self.probability() >= 0.5)
        counts = {f"{split}_{name}": count for name, count in confusion.counts().items()}
        return {f"{split}_loss": self._rows[2, : self.images].cpu().double().mean().item(), **counts}
