"""Train one sub-model in this process: what trials and folds have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import islice

import torch

from ovr_ray.images import Feed, ImageSet
from ovr_ray.training.device import is_out_of_memory, set_up_process
from ovr_ray.training.session import Assignment, Session, Unwritable
from ovr_ray.training.trainer import Diverged, EpochRow


class Cause(StrEnum):
    """Why training ended early."""

    DIVERGED = "diverged"
    """The loss, or the network's output, was not a finite number."""
    OUT_OF_MEMORY = "out_of_memory"
    """Even micro-batches of two images need more memory than there is."""
    UNWRITABLE = "unwritable"
    """The storage is full or locked."""
    UNSEEN = "unseen"
    """This node does not see the run folder."""


@dataclass(frozen=True)
class EarlyEnd:
    """Training ended before its last epoch, for a reason that another try would not remove."""

    cause: Cause
    reason: str


@dataclass(frozen=True)
class Team:
    """The processes that train one sub-model together, seen from one of them."""

    size: int = 1
    rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and predictions."""
        return self.rank == 0


ALONE = Team()


def ignore(_: object) -> None:
    """Ignore the argument."""


def train(
    given: Assignment,
    images: ImageSet,
    cpus: float,
    gpus: float,
    team: Team = ALONE,
    on_epoch: Callable[[EpochRow], None] = ignore,
    on_end: Callable[[Session], None] = ignore,
) -> EarlyEnd | None:
    """Train a sub-model, from the last checkpoint in its folder if there is one.

    If memory runs out, training resumes from that checkpoint with each batch in twice as many micro-batches. In a team,
    it is the next try that does, because the other ranks have to begin again, too.

    Parameters
    ----------
    given : Assignment
    images : ImageSet
    cpus, gpus : float
        Resources of this process.
    team : Team
    on_epoch : callable
        Called with every epoch's row after it is saved, and first with the row that training resumes from.
    on_end : callable
        Called after the last epoch.

    Returns
    -------
    EarlyEnd or None
        None if the last epoch was reached. In a team, only divergence is returned, which all ranks notice together;
        other errors are raised, because the other ranks wait for this one.

    Raises
    ------
    BadInput
        If the initial weights cannot be loaded.
    """
    device = set_up_process(cpus, gpus)
    torch.backends.cudnn.benchmark = True  # all batches have images of one size
    attempt = partial(_train, given, images, device, team, on_epoch, on_end)
    first = max(given.parts, given.folder.parts() if team.size > 1 else 1)
    return in_micro_batches(attempt, given.config.batch_size, first)


def in_micro_batches(attempt: Callable[[int], EarlyEnd | None], batch_size: int, first: int = 1) -> EarlyEnd | None:
    """Call ``attempt`` with twice as many micro-batches until memory suffices, or one would have one image alone."""
    most = max(1, batch_size // 2)
    count = min(first, most)
    while (end := attempt(count)) and end.cause == Cause.OUT_OF_MEMORY and count < most:
        torch.cuda.empty_cache()  # does nothing without a GPU
        count = min(2 * count, most)
    return end


def _train(
    given: Assignment,
    images: ImageSet,
    device: torch.device,
    team: Team,
    on_epoch: Callable[[EpochRow], None],
    on_end: Callable[[Session], None],
    micro_batches: int,
) -> EarlyEnd | None:
    try:
        session = Session(given, device, micro_batches, team.size, team.leads)
        trainer, batch_size = session.trainer, given.config.batch_size
        feed = Feed(images, given.train_labels, batch_size, device)
        val = Feed(images, given.val_labels, max(2, 2 * batch_size // trainer.micro_batches), device)
        here = {"device": device.type, "parts": trainer.micro_batches, "precision": trainer.precision}
        if session.restored:  # the driver may not know this epoch
            on_epoch(session.restored | here)
        epochs = trainer.epochs(lambda e: feed.shuffled(e, trainer.seed, given.augment), val.ordered, len(feed))
        for row in islice(epochs, max(0, given.epochs - trainer.epoch)):
            session.save(row | here)
            on_epoch(row | here)
        on_end(session)
    except Diverged as error:
        return EarlyEnd(Cause.DIVERGED, str(error))
    except (Unwritable, RuntimeError) as error:
        if team.size > 1:
            lacks_memory = isinstance(error, RuntimeError) and is_out_of_memory(error)
            if lacks_memory and 2 * micro_batches <= given.config.batch_size // team.size // 2:
                given.folder.write_parts(2 * micro_batches)
            raise
        if isinstance(error, Unwritable):
            return EarlyEnd(Cause.UNWRITABLE, str(error))
        if not is_out_of_memory(error):
            raise
        config = given.config.model_dump(exclude_defaults=True)
        reason = f"out of memory on {device} with batches in {micro_batches} micro-batches: {config}"
        return EarlyEnd(Cause.OUT_OF_MEMORY, reason)
    return None
