"""What runs in the processes of a fold: the only place where training meets Ray Train."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pandas as pd
import ray
import torch
from ray import train as ray_train

from ovr_ray import cluster
from ovr_ray.errors import BadInput
from ovr_ray.images import ImageSet, LabelTable
from ovr_ray.joint import Ensemble
from ovr_ray.runs import FoldFolder, RunFolder
from ovr_ray.training import Assignment, Session, Team, storage_is_writable, train

BATCH: Final = 64
"""Images that are predicted at a time."""


@dataclass(frozen=True)
class Fold:
    """One fold of a task.

    Attributes
    ----------
    number : int
        Counted from 0.
    folder : FoldFolder
    assignment : Assignment
        Its ``val_labels`` are those of the images that the fold holds out.
    """

    number: int
    folder: FoldFolder
    assignment: Assignment


@dataclass(frozen=True)
class RefitContext:
    """What all folds of a refit share."""

    run: RunFolder
    table: LabelTable
    images: ImageSet


def train_fold(fold: Fold, context: ray.ObjectRef[RefitContext]) -> str:
    """Train a fold, from its last checkpoint if it has one, and write its predictions of the held-out images.

    Returns
    -------
    str
        Why this is impossible, if another try would not help; else "".
    """
    shared: RefitContext = ray.get(context)
    if not shared.run.exists():  # a failure would be tried again on this node
        return cluster.unseen_here(shared.run.path)
    own = ray_train.get_context()
    team, share = Team(own.get_world_size(), own.get_world_rank()), cluster.assigned_here()
    predict = partial(_write_predictions, fold=fold, context=shared, team=team)
    try:
        end = train(fold.assignment, shared.images, share.cpus, share.gpus, team, on_end=predict)
    except BadInput as error:  # the initial weights cannot be had; every rank notices it
        return str(error)
    return end.reason if end else ""


def _write_predictions(session: Session, fold: Fold, context: RefitContext, team: Team) -> None:
    if team.leads:
        table = _predictions(session, fold, context)
        with storage_is_writable(fold.folder):
            fold.folder.write_predictions(table)


@torch.inference_mode()
def _predictions(session: Session, fold: Fold, context: RefitContext) -> pd.DataFrame:
    """Predict the held-out images, in the order of the label table: filename, fold, label, logit, logit_flips."""
    sub_model, device = session.trainer.sub_model.eval(), session.trainer.device
    plain, flipped = Ensemble([sub_model]), Ensemble([sub_model], flip_average=True)
    answers: dict[int, tuple[float, float]] = {}
    for window in context.images.windows(np.isfinite(fold.assignment.val_labels), None):
        rows = list(window)
        for batch_rows in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
            batch = torch.from_numpy(np.stack([window[row] for row in batch_rows])).to(device)
            answers |= zip(batch_rows, zip(plain(batch).tolist(), flipped(batch).tolist(), strict=True), strict=True)
    at = sorted(answers)
    table = pd.DataFrame({"filename": context.table.files.iloc[at], "fold": fold.number})
    table["label"] = context.table.labels[fold.assignment.task].iloc[at].astype(int)
    table[["logit", "logit_flips"]] = [answers[row] for row in at]
    return table
