"""A trainer and the folder that it writes to and resumes from: of a trial, or of a refit's fold."""

from __future__ import annotations

import errno
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from upath import UPath

from ovr_ray.model import TRAINING, Card, forget, initial_weights, load_training, read_card, save
from ovr_ray.recipe import Augment, Checkpoints, Config, ThresholdGoal
from ovr_ray.runs import TrialFolder
from ovr_ray.training.trainer import EpochRow, Trainer

NO_MORE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a full or locked disk, where another try would only use up trials."""


def derived_seed(seed: int, name: str, number: int) -> int:
    """Return the random seed of a trial or a fold, which is the same on every machine."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]).generate_state(1)[0])


class Unwritable(Exception):
    """The run folder's storage is full or locked."""


@contextmanager
def storage_is_writable(folder: TrialFolder) -> Iterator[None]:
    """Raise :class:`Unwritable` for a full or locked disk within this block; other errors are worth another try."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_MORE:
            raise
        raise Unwritable(f"{error.filename or folder.path}: {error.strerror}") from error


@dataclass(frozen=True)
class Assignment:
    """All that the training of one sub-model needs, besides the images.

    Attributes
    ----------
    folder : TrialFolder
        Where checkpoints and epochs are written.
    task : str
    config : Config
    seed : int
        Random seed; see :func:`derived_seed`.
    train_labels, val_labels : ndarray of float32
        The task's label of every row of the label table; NaN where a row is not trained on, or not validated on.
    mean, std : list of float
        Per channel, of the training images.
    stored_size, channels : int
        Pixels a side, and channels, of the stored images.
    epochs : int
        Number of epochs to train.
    max_epochs : int
        Epoch at which the schedule ends; at least ``epochs``.
    goal : ThresholdGoal
        How the decision threshold is chosen.
    augment : Augment
        Random changes of the training images.
    score_column : str
        Column of ``epochs.csv`` that ranks the checkpoints; the highest are kept.
    checkpoints : Checkpoints
    parts : int
        Number of micro-batches to begin with.
    """

    folder: TrialFolder
    task: str
    config: Config
    seed: int
    train_labels: np.ndarray
    val_labels: np.ndarray
    mean: list[float]
    std: list[float]
    stored_size: int
    channels: int
    epochs: int
    max_epochs: int
    goal: ThresholdGoal
    augment: Augment
    score_column: str
    checkpoints: Checkpoints
    parts: int = 1

    @property
    def pos_weight(self) -> float:
        """Weight of a positive image in the loss; balanced: negatives / positives of the training images."""
        if self.config.pos_weight == "balanced":
            return float((self.train_labels == 0).sum() / (self.train_labels == 1).sum())
        return self.config.pos_weight

    def card(self) -> Card:
        """Return the card of its checkpoints, without an epoch."""
        return Card(
            task=self.task,
            config=self.config.model_dump(mode="json"),
            epoch=0,
            metrics={},
            threshold=0.5,
            stored_size=self.stored_size,
            image_size=self.config.image_size or self.stored_size,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
        )


class Session:
    """A trainer that starts from the last checkpoint in its folder, if there is one, and writes new ones there.

    Parameters
    ----------
    given : Assignment
    device : torch.device
    micro_batches : int
        Minimum number of micro-batches; if the last checkpoint used more, that number is used.
    workers : int
        Processes that train this together; see :class:`~ovr_ray.training.Trainer`.
    leads : bool
        Whether this process is the one that writes (rank 0).

    Attributes
    ----------
    trainer : Trainer
    restored : dict or None
        Row of ``epochs.csv`` of the checkpoint that training resumes from.

    Raises
    ------
    Unwritable
        If the folder cannot be written.
    BadInput
        If the initial weights cannot be loaded.
    """

    def __init__(
        self, given: Assignment, device: torch.device, micro_batches: int = 1, workers: int = 1, leads: bool = True
    ) -> None:
        self._given, self._leads, self._card = given, leads, given.card()
        config, checkpoint = given.config, self._latest_checkpoint()
        weights = None if checkpoint else initial_weights(config.backbone, config.weights)
        torch.manual_seed(given.seed)
        before = checkpoint[1].metrics if checkpoint else {}
        if config.precision == "auto":  # a trial goes on as it began, whatever this machine would choose
            config = config.model_copy(update={"precision": before.get("precision", "auto")})
        self.trainer = Trainer(
            self._card.sub_model(weights),
            config,
            pos_weight=given.pos_weight,
            max_epochs=given.max_epochs,
            device=device,
            seed=given.seed,
            goal=given.goal,
            micro_batches=max(micro_batches, before.get("parts", 1)),
            workers=workers,
        )
        self.restored: EpochRow | None = None
        self._rows: list[EpochRow] = []
        if checkpoint:
            with storage_is_writable(given.folder):
                self._restore(*checkpoint)

    def _restore(self, checkpoint: UPath, card: Card) -> None:
        self.restored = card.metrics
        self.trainer.load_state_dict(load_training(checkpoint, self.trainer.sub_model))
        before = [{str(k): v for k, v in row.items()} for row in self._given.folder.epochs().to_dict("records")]
        self._rows = [*(row for row in before if row["epoch"] < card.epoch), card.metrics]
        if self._leads:
            self._given.folder.write_epochs(self._rows)

    def _whole_checkpoints(self) -> dict[UPath, Card]:
        found = self._given.folder.checkpoints()
        return {path: card for path, files in found.items() if (card := read_card(path, files))}

    def _latest_checkpoint(self) -> tuple[UPath, Card] | None:
        """Return the checkpoint to resume from; only those that were the latest have a training state."""
        found = self._given.folder.checkpoints().items()
        resumable = [(path, card) for path, files in found if TRAINING in files and (card := read_card(path, files))]
        return max(resumable, key=lambda checkpoint: checkpoint[1].epoch, default=None)

    def save(self, row: EpochRow) -> None:
        """Write the epoch's checkpoint, if one is due, and its row; raises :class:`Unwritable`."""
        if self._leads:
            with storage_is_writable(self._given.folder):
                self._save(row | {"time": round(time.time(), 3)})

    def _save(self, row: EpochRow) -> None:
        epoch, rule, folder = row["epoch"], self._given.checkpoints, self._given.folder
        above = rule.above_f1 is not None and row["val_f1"] >= rule.above_f1
        if epoch % rule.every == 0 or above or epoch == self._given.epochs:
            card = replace(self._card, epoch=epoch, metrics=row, threshold=self.trainer.decision_threshold)
            save(folder.checkpoint(epoch), card, self.trainer.sub_model, self.trainer.state_dict())
            self._prune()
        self._rows.append(row)
        folder.write_epochs(self._rows)

    def _prune(self) -> None:
        """Delete all but the best checkpoints and the latest, and the training state of all but the latest."""
        whole, keep = self._whole_checkpoints(), self._given.checkpoints.keep
        ranked = sorted(whole, key=lambda path: whole[path].rank(self._given.score_column), reverse=True)
        latest = max(whole, key=lambda path: whole[path].epoch)
        best = ranked[:keep]
        stay = best if latest in best else ranked[: max(1, keep - 1)]
        for path in set(whole) - {latest}:
            forget(path, weights_too=path not in stay)
