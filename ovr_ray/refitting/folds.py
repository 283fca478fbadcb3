"""Which images a fold is trained on, and which it holds out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import LabelTable, groups
from ovr_ray.recipe import Data

NONE = -1
"""The fold of rows that no fold trains on or holds out."""


def assign(table: LabelTable, task: str, data: Data, count: int, seed: int) -> np.ndarray:
    """The fold that holds out each row of a label table, stratified on the task's label; groups are not torn.

    Parameters
    ----------
    table : LabelTable
    task : str
    data : Data
        Of the recipe; says whether there are groups.
    count : int
        Of folds.
    seed : int

    Returns
    -------
    ndarray of int64
        0 to ``count`` - 1; :data:`NONE` for rows of the test part and those that do not count for the task.

    Raises
    ------
    BadInput
        If a fold would hold out, or train on, images of one class only.
    """
    labels = table.labels[task].where(table.parts != "test")
    rows = np.flatnonzero(labels.notna())
    known = labels.to_numpy()[rows]
    if pd.Series(known).value_counts().min() < count:
        raise BadInput(_fault(task, count))
    if data.group is None:
        drawn = StratifiedKFold(count, shuffle=True, random_state=seed).split(known, known)
    else:
        together = groups(data, table.files).to_numpy()[rows]
        drawn = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(known, known, together)
    folds = np.full(len(labels), NONE)
    for number, (_, held_out) in enumerate(drawn):
        folds[rows[held_out]] = number
        if len(np.unique(known[held_out])) < 2 or len(np.unique(np.delete(known, held_out))) < 2:
            raise BadInput(_fault(task, count))
    return folds


def labels_of(table: LabelTable, task: str, chosen: np.ndarray) -> np.ndarray:
    """A task's labels (float32), as a feed takes them: NaN where a row is not among the chosen ones (bool)."""
    return table.labels[task].where(chosen).to_numpy(np.float32)


def _fault(task: str, count: int) -> Fault:
    problem = "needs images of both classes in each fold, held out and to train on"
    return Fault(
        f"--folds {count}, task {task!r}", problem, "make fewer folds, or label more images of the rarer class"
    )
