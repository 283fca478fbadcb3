"""What an epoch's batches gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import distributed

from ovr_ray.model.metrics import Confusion


class Tally:
    """Logits, labels and losses of an epoch, on their device until they are asked for.

    In one buffer: small tensors kept between the large ones that each step frees would tear the heap apart.
    """

    def __init__(self) -> None:
        self._batches: list[int] = [0]
        self._seen = 0
        self._figures = torch.empty(3, 0)

    @property
    def images(self) -> int:
        """How many there are."""
        return self._batches[-1]

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """A batch: logits and labels, (N), and its mean loss."""
        start, end = self.images, self.images + len(labels)
        if end > self._figures.shape[1]:
            more = logits.new_empty(3, max(1024, 2 * end), dtype=torch.float32)
            more[:, :start] = self._figures[:, :start]
            self._figures = more
        self._figures[:, start:end] = torch.stack([logits, labels, loss.expand_as(logits)])
        self._batches.append(end)

    def unseen_losses(self, behind: int) -> list[torch.Tensor]:
        """Those of the batches since the last call, but for so many of the latest."""
        first, self._seen = self._seen, max(self._seen, len(self._batches) - 1 - behind)
        return [self._figures[2, start].clone() for start in self._batches[first : self._seen]]

    def truth(self) -> np.ndarray:
        """Labels, float32 (N)."""
        return self._figures[1, : self.images].cpu().numpy()

    def probability(self) -> np.ndarray:
        """Float64 (N)."""
        return self._figures[0, : self.images].cpu().double().sigmoid().numpy()

    def of_all_workers(self) -> Tally:
        """The workers' tallies as one; each of them gets it."""
        every: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(every, self._figures[:, : self.images].cpu())
        total = Tally()
        total._figures = torch.cat(every, 1)
        total._batches.append(total._figures.shape[1])
        return total

    def metrics(self, part: str) -> dict[str, Any]:
        """Loss and confusion counts at probability 0.5."""
        confusion = Confusion.of(self.truth(), self.probability() >= 0.5)
        counts = {f"{part}_{name}": count for name, count in confusion.counts().items()}
        return {f"{part}_loss": self._figures[2, : self.images].cpu().double().mean().item(), **counts}
