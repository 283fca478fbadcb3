"""What the workers of one fold run: the only place where training meets Ray Train."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import ray
import torch
from ray import train

from ovr_ray.errors import BadInput
from ovr_ray.images import Feed, ImageSet, LabelTable
from ovr_ray.joint import Ensemble
from ovr_ray.model import Diverged, SubModel, choose_device, is_out_of_memory, keep_pages
from ovr_ray.recipe import Recipe
from ovr_ray.refitting.folds import labels_of
from ovr_ray.run_folder import FoldFolder, RunFolder
from ovr_ray.session import Assignment, Session, Unwritable, in_parts, storage

BATCH = 64
"""Images that are predicted at a time."""


@dataclass(frozen=True)
class Fold:
    """One fold of a task.

    Attributes
    ----------
    number : int
    folder : FoldFolder
    assignment : Assignment
    train, held_out : ndarray of bool
        Rows of the label table.
    """

    number: int
    folder: FoldFolder
    assignment: Assignment
    train: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Shared:
    """What all folds of a refit share."""

    recipe: Recipe
    run: RunFolder
    table: LabelTable
    images: ImageSet


def train_fold(fold: Fold, shared: ray.ObjectRef) -> str:
    """Train a fold, from its last checkpoint if it has one, and write what it says of the images that it held out.

    Returns
    -------
    str
        Why that is impossible, where another try would not help; or nothing.
    """
    keep_pages()
    given: Shared = ray.get(shared)
    if not given.run.file("recipe.yaml").exists():  # a node that joined after the refit began was not asked
        return f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}) does not see {given.run.path}"
    assigned = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
    torch.backends.cudnn.benchmark = True  # all images are of one size
    device = choose_device(assigned.get("GPU", 0))
    end = in_parts(partial(_train, fold, given, device), fold.assignment.config.batch_size)
    return next(iter(end.values()), "")


def _train(fold: Fold, shared: Shared, device: torch.device, parts: int) -> dict[str, str]:
    """Epoch by epoch to the winner's; or why it ended before."""
    context = train.get_context()
    workers, leads = context.get_world_size(), context.get_world_rank() == 0
    try:
        session = Session(fold.assignment, shared.recipe, device, parts, workers, leads)
        _epochs(session, fold, shared, device)
        if leads:
            table = _predictions(session.trainer.sub_model, fold, shared, device)
            with storage(fold.folder):
                fold.folder.write_predictions(table)
    except (Diverged, BadInput) as reason:  # of all workers
        return {"reason": str(reason)}
    except (Unwritable, RuntimeError) as error:
        if workers > 1:  # the others wait for this one
            raise
        if isinstance(error, Unwritable):
            return {"reason": str(error)}
        if not is_out_of_memory(error):
            raise
        return {"out_of_memory": f"out of memory on {device} with batches in {parts} parts"}
    return {}


def _epochs(session: Session, fold: Fold, shared: Shared, device: torch.device) -> None:
    """As many as are left; no epoch is chosen by what it gives on the images that are held out."""
    assignment, trainer = fold.assignment, session.trainer
    task, batch_size = assignment.task, assignment.config.batch_size
    feed = Feed(shared.images, labels_of(shared.table, task, fold.train), batch_size, device)
    held_out = labels_of(shared.table, task, fold.held_out)
    val = Feed(shared.images, held_out, max(2, 2 * batch_size // trainer.parts), device)
    augment = assignment.config.augment(shared.recipe.augment)
    epochs = trainer.epochs(lambda e: feed.shuffled(e, trainer.seed, augment), val.ordered, len(feed))
    for metrics in islice(epochs, max(0, assignment.epochs - trainer.epoch)):
        session.save(metrics | {"device": device.type, "parts": trainer.parts})


@torch.inference_mode()
def _predictions(sub_model: SubModel, fold: Fold, shared: Shared, device: torch.device) -> pd.DataFrame:
    """Of the images held out, in the order of the label table: filename, fold, label, logit, logit_flips."""
    plain, flipped = Ensemble([sub_model.eval()]), Ensemble([sub_model], flip_average=True)
    answers: dict[int, tuple[float, float]] = {}
    for window in shared.images.windows(fold.held_out, None):
        rows = list(window)
        for some in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
            batch = torch.from_numpy(np.stack([window[row] for row in some])).to(device)
            answers |= zip(some, zip(plain(batch).tolist(), flipped(batch).tolist(), strict=True), strict=True)
    at = sorted(answers)
    table = pd.DataFrame({"filename": shared.table.files.iloc[at], "fold": fold.number})
    table["label"] = shared.table.labels[fold.assignment.task].iloc[at].astype(int)
    table[["logit", "logit_flips"]] = [answers[row] for row in at]
    return table
