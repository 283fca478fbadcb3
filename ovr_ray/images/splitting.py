"""Which part a row falls into, and which rows are enough to try things out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ovr_ray.recipe import RandomSplit

FEW_LABELS = 2
"""Of so many the combinations are common; of more, many are seen once, and a label's positives would fall anywhere."""


def split(labels: pd.DataFrame, how: RandomSplit, groups: pd.Series | None = None) -> pd.Series:
    """Draw the parts, stratified on the labels.

    Of one or two labels each combination's rows (or groups) are shuffled and cut at the wanted shares; where the cut
    begins is drawn too, so that combinations of one or two rows fall into every part in proportion, and none is an
    error. Of more, each label has its share of positives in every part, the rarest first; see :func:`balanced`.

    Parameters
    ----------
    labels : DataFrame, rows x labels
        1, 0, or NaN where it is not known.
    how : RandomSplit
    groups : Series, optional
        Rows with one value stay together. A group's combination is that of all its rows' positives.

    Returns
    -------
    Series of str
        train, val or test for every row.
    """
    rng = np.random.default_rng(how.seed)
    unit = groups if groups is not None else pd.Series(labels.index, index=labels.index)
    draw = _by_combination if len(labels.columns) <= FEW_LABELS else _by_label
    return unit.map(draw(labels, unit, how, rng))


def limited(labels: pd.DataFrame, limit: int) -> pd.Index:
    """About so many rows, in which the labels have their shares."""
    share = limit / len(labels)
    if len(labels.columns) > FEW_LABELS:
        counts = _counts(labels, pd.Series(labels.index, index=labels.index))
        return labels.index[balanced(counts, np.array([share, 1 - share]), np.random.default_rng(0)) == 0]
    combination = labels.fillna(-1).groupby(list(labels.columns), sort=True)
    kept = combination[labels.columns[0]].transform("size") * share
    return labels.index[combination.cumcount() < kept.round().clip(lower=1)]


def balanced(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011).

    What is rarest among the units that are left is dealt out first, each unit to the part that lacks most of it; of
    equals to the part that lacks most rows.

    Parameters
    ----------
    counts : ndarray of int, units x kinds
        Rows of each kind in a unit; the last kind is any row.
    shares : ndarray of float
        Of each part.
    rng : Generator

    Returns
    -------
    ndarray of int64
        The part of each unit.
    """
    lacking = np.outer(shares, counts.sum(0))
    part, has = np.full(len(counts), -1), counts > 0
    shuffled = rng.permutation(len(counts))
    while len(left := shuffled[part[shuffled] < 0]):
        frequency = has[left].sum(0)
        rarest = np.where(frequency > 0, frequency, len(counts) + 1).argmin()
        for unit in left[has[left, rarest]]:
            wanting = np.flatnonzero(lacking[:, rarest] == lacking[:, rarest].max())
            part[unit] = wanting[lacking[wanting, -1].argmax()]
            lacking[part[unit]] -= counts[unit]
    return part


def _by_combination(labels: pd.DataFrame, unit: pd.Series, how: RandomSplit, rng: np.random.Generator) -> pd.Series:
    units = labels.fillna(-1).groupby(unit, sort=True).max()
    units = units.assign(stratum=units.groupby(list(labels.columns), sort=True).ngroup(), size=unit.value_counts())
    units = units.iloc[rng.permutation(len(units))]
    by_stratum = units.groupby("stratum")["size"]
    start = rng.random(int(units["stratum"].max()) + 1)[units["stratum"]]
    position = (by_stratum.cumsum() - start * units["size"]) / by_stratum.transform("sum")
    chosen = np.select([position < how.val, position < how.val + how.test], ["val", "test"], "train")
    return pd.Series(chosen, index=units.index)


def _by_label(labels: pd.DataFrame, unit: pd.Series, how: RandomSplit, rng: np.random.Generator) -> pd.Series:
    names = np.array(["train", "val", "test"])
    counts = _counts(labels, unit)
    part = balanced(counts, np.array([1 - how.val - how.test, how.val, how.test]), rng)
    return pd.Series(names[part], index=np.unique(unit))


def _counts(labels: pd.DataFrame, unit: pd.Series) -> np.ndarray:
    """Positives and negatives of every label in a unit, and its rows; units in order."""
    kinds = [labels == 1, labels == 0, pd.Series(True, index=labels.index)]
    return pd.concat(kinds, axis=1).groupby(unit, sort=True).sum().to_numpy()
