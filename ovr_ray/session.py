"""A sub-model's training and what it leaves in its folder, from which it goes on: of a trial, or of a refit's fold."""

from __future__ import annotations

import errno
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from upath import UPath

from ovr_ray.model import Card, Trainer, forget, load_training, read_card, save
from ovr_ray.recipe import Checkpoints, Config, Recipe
from ovr_ray.run_folder import TrialFolder

NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a full or locked disk says; to try again would only use up trials."""


def derived_seed(seed: int, task: str, number: int) -> int:
    """A seed of its own for every trial, equal on every machine."""
    return int(np.random.SeedSequence([seed, zlib.crc32(task.encode()), number]).generate_state(1)[0])


def in_parts(train: Callable[[int], dict[str, str]], batch_size: int) -> dict[str, str]:
    """Train with batches in 1, 2, 4 … parts, until the memory suffices or a part would have less than two images.

    Parameters
    ----------
    train : callable
        From a number of parts to why training ended too early: ``out_of_memory``, another reason, or nothing.
    batch_size : int

    Returns
    -------
    dict
        What the last call returned.
    """
    parts, most = 1, max(1, batch_size // 2)
    while "out_of_memory" in (end := train(parts)) and parts < most:
        torch.cuda.empty_cache()  # nothing where there is no GPU
        parts = min(2 * parts, most)
    return end


class Unwritable(Exception):
    """The run folder takes no more."""


@contextmanager
def storage(folder: TrialFolder) -> Iterator[None]:
    """Tells a full or locked disk, by :class:`Unwritable`, from what is worth another try."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_MORE:
            raise
        raise Unwritable(f"{error.filename or folder.path}: {error.strerror}") from error


@dataclass(frozen=True)
class Assignment:
    """What is to be trained, on what, and where to.

    Attributes
    ----------
    folder : TrialFolder
    task : str
    config : Config
    seed : int
    pos_weight : float
        Negatives / positives of the training images, for a config that asks for balance.
    mean, std : list of float
        Of the training images, a channel.
    epochs : int
        To be trained; a schedule goes on to ``search.max_epochs``.
    metric : str
        What the checkpoints that stay are the best by.
    checkpoints : Checkpoints
    """

    folder: TrialFolder
    task: str
    config: Config
    seed: int
    pos_weight: float
    mean: list[float]
    std: list[float]
    epochs: int
    metric: str
    checkpoints: Checkpoints


class Session:
    """A trainer and what it leaves in its folder, from the last checkpoint there, if there is one.

    Parameters
    ----------
    given : Assignment
    recipe : Recipe
    device : torch.device
    parts : int
        Of a batch, at least.
    workers : int
        Processes that train this together; see :class:`~ovr_ray.model.Trainer`.
    leads : bool
        Whether this one of them writes.

    Raises
    ------
    Unwritable
    """

    def __init__(
        self, given: Assignment, recipe: Recipe, device: torch.device, parts: int, workers: int = 1, leads: bool = True
    ) -> None:
        self._given, self._leads = given, leads
        config = given.config
        checkpoint = self._latest_checkpoint()
        self._card = Card(
            task=given.task,
            config=config.model_dump(mode="json"),
            epoch=0,
            metrics={},
            threshold=0.5,
            stored_size=recipe.data.image_size,
            image_size=config.image_size or recipe.data.image_size,
            channels=recipe.data.channels,
            mean=given.mean,
            std=given.std,
        )
        torch.manual_seed(given.seed)
        sub_model = self._card.sub_model(weights=None if checkpoint else config.weights)
        self.trainer = Trainer(
            sub_model,
            config,
            pos_weight=given.pos_weight if config.pos_weight == "balanced" else config.pos_weight,
            max_epochs=recipe.search.max_epochs,
            device=device,
            seed=given.seed,
            goal=recipe.tasks[given.task].threshold,
            parts=max(parts, checkpoint[1].metrics.get("parts", 1) if checkpoint else 1),
            workers=workers,
        )
        self.restored: dict[str, Any] | None = None
        self._rows: list[dict[str, Any]] = []
        if checkpoint:
            with storage(given.folder):
                self._restore(*checkpoint)

    def _restore(self, checkpoint: UPath, card: Card) -> None:
        self.restored = card.metrics
        self.trainer.load_state_dict(load_training(checkpoint, self.trainer.sub_model))
        before = [{str(k): v for k, v in row.items()} for row in self._given.folder.epochs().to_dict("records")]
        self._rows = [*(row for row in before if row["epoch"] < card.epoch), card.metrics]
        if self._leads:
            self._given.folder.write_epochs(self._rows)

    def _whole_checkpoints(self) -> dict[UPath, Card]:
        return {path: card for path in self._given.folder.checkpoints() if (card := read_card(path))}

    def _latest_checkpoint(self) -> tuple[UPath, Card] | None:
        return max(self._whole_checkpoints().items(), key=lambda found: found[1].epoch, default=None)

    def save(self, metrics: dict[str, Any]) -> None:
        """Write the epoch's checkpoint, if one is due, and its row; raises :class:`Unwritable`."""
        if self._leads:
            with storage(self._given.folder):
                self._save(metrics)

    def _save(self, metrics: dict[str, Any]) -> None:
        row = metrics | {"time": round(time.time(), 3)}
        epoch, rule, folder = metrics["epoch"], self._given.checkpoints, self._given.folder
        above = rule.above_f1 is not None and metrics["val_f1"] >= rule.above_f1
        if epoch % rule.every == 0 or above or epoch == self._given.epochs:
            card = replace(self._card, epoch=epoch, metrics=row, threshold=self.trainer.decision_threshold)
            save(folder.checkpoint(epoch), card, self.trainer.sub_model, self.trainer.state_dict())
            self._prune()
        self._rows.append(row)
        folder.write_epochs(self._rows)

    def _prune(self) -> None:
        """Keep the best checkpoints and the latest; only the latest has to know how to go on."""
        whole, keep = self._whole_checkpoints(), self._given.checkpoints.keep
        ranked = sorted(whole, key=lambda path: whole[path].rank(self._given.metric), reverse=True)
        latest = max(whole, key=lambda path: whole[path].epoch)
        best = ranked[:keep]
        stay = best if latest in best else ranked[: max(1, keep - 1)]
        for path in set(whole) - {latest}:
            forget(path, weights_too=path not in stay)
