"""The images that a fold is trained on, and those that it holds out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import LabelTable, groups
from ovr_ray.recipe import Data

NONE = -1
"""The number of rows that no fold trains on or holds out."""


def assign(table: LabelTable, task: str, data: Data, count: int, seed: int) -> np.ndarray:
    """Return the fold that holds out each row of a label table, stratified on the task's label; groups stay together.

    Parameters
    ----------
    table : LabelTable
    task : str
    data : Data
        The recipe's data, which says whether there are groups, and whether duplicates stay together.
    count : int
        Number of folds.
    seed : int

    Returns
    -------
    ndarray of int64
        0 to ``count`` - 1; :data:`NONE` for rows of the test split and for rows without a label.

    Raises
    ------
    BadInput
        If a fold would hold out, or train on, images of one class only.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = table.labels[task].where(table.splits != "test")
    rows = np.flatnonzero(labels.notna())
    known = labels.to_numpy()[rows]
    if pd.Series(known).value_counts().min() < count:
        raise BadInput(_fault(task, count))
    together = groups(data, table.files)
    if together is None:
        drawn = StratifiedKFold(count, shuffle=True, random_state=seed).split(known, known)
    else:
        kept = together.to_numpy()[rows]
        drawn = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(known, known, kept)
    folds = np.full(len(labels), NONE)
    for number, (_, held_out) in enumerate(drawn):
        folds[rows[held_out]] = number
        if len(np.unique(known[held_out])) < 2 or len(np.unique(np.delete(known, held_out))) < 2:
            raise BadInput(_fault(task, count))
    return folds


def chosen_labels(table: LabelTable, task: str, chosen: np.ndarray) -> np.ndarray:
    """Return a task's labels (float32, per row of the table), NaN where ``chosen`` (bool, per row) is False."""
    return table.labels[task].where(chosen).to_numpy(np.float32)


def _fault(task: str, count: int) -> Fault:
    problem = "needs images of both classes in each fold, held out and to train on"
    return Fault(
        f"--folds {count}, task {task!r}", problem, "make fewer folds, or label more images of the rarer class"
    )
