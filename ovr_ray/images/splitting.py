"""Stratified draws: the split of every row, and a small subset of the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ovr_ray.recipe import RandomSplit

FEW_LABELS = 2
"""Most labels that are stratified by combination; with more, many combinations occur once and balance nothing."""


def split(labels: pd.DataFrame, settings: RandomSplit, groups: pd.Series | None = None) -> pd.Series:
    """Draw the split of every row, stratified on the labels.

    With one or two labels, the rows (or groups) of each combination are shuffled and cut at the wanted shares. The
    start of the cuts is drawn too, so that combinations of one or two rows fall into every split in proportion, and no
    combination is too rare. With more labels, every split gets its share of each label's positives, the rarest label
    first; see :func:`balanced`.

    Parameters
    ----------
    labels : DataFrame, rows x labels
        1, 0, or NaN if unknown.
    settings : RandomSplit
        Shares and random seed.
    groups : Series, optional
        Rows with the same value stay together. A group is positive for a label if any of its rows is.

    Returns
    -------
    Series of str
        train, val or test for every row.
    """
    rng = np.random.default_rng(settings.seed)
    unit = (groups if groups is not None else pd.Series(labels.index, index=labels.index)).rename(None)
    draw = _by_combination if len(labels.columns) <= FEW_LABELS else _by_label
    return unit.map(draw(labels, unit, settings, rng))


def limited(labels: pd.DataFrame, limit: int) -> pd.Index:
    """Return the index of about ``limit`` rows in which the labels keep their shares."""
    share = limit / len(labels)
    if len(labels.columns) > FEW_LABELS:
        counts = _counts(labels, pd.Series(labels.index, index=labels.index))
        return labels.index[balanced(counts, np.array([share, 1 - share]), np.random.default_rng(0)) == 0]
    combination = labels.fillna(-1).groupby(list(labels.columns), sort=True)
    kept = combination[labels.columns[0]].transform("size") * share
    return labels.index[combination.cumcount() < kept.round().clip(lower=1)]


def balanced(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign units to splits by iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011).

    The kind that is rarest among the remaining units is assigned first. Each of its units goes to the split that lacks
    most rows of that kind; if several lack equally many, to the one of them that lacks most rows.

    Parameters
    ----------
    counts : ndarray of int, units x kinds
        Rows of each kind in each unit (a row or a group); the last kind counts all rows.
    shares : ndarray of float
        Share of each split.
    rng : Generator

    Returns
    -------
    ndarray of int64
        Index of each unit's split.
    """
    lacking = np.outer(shares, counts.sum(0))
    assigned, has = np.full(len(counts), -1), counts > 0
    shuffled = rng.permutation(len(counts))
    while len(remaining := shuffled[assigned[shuffled] < 0]):
        frequency = has[remaining].sum(0)
        rarest = np.where(frequency > 0, frequency, len(counts) + 1).argmin()
        for unit in remaining[has[remaining, rarest]]:
            candidates = np.flatnonzero(lacking[:, rarest] == lacking[:, rarest].max())
            assigned[unit] = candidates[lacking[candidates, -1].argmax()]
            lacking[assigned[unit]] -= counts[unit]
    return assigned


def _by_combination(
    labels: pd.DataFrame, unit: pd.Series, settings: RandomSplit, rng: np.random.Generator
) -> pd.Series:
    units = labels.fillna(-1).groupby(unit, sort=True).max()
    units = units.assign(stratum=units.groupby(list(labels.columns), sort=True).ngroup(), size=unit.value_counts())
    units = units.iloc[rng.permutation(len(units))]
    by_stratum = units.groupby("stratum")["size"]
    start = rng.random(int(units["stratum"].max()) + 1)[units["stratum"]]
    position = (by_stratum.cumsum() - start * units["size"]) / by_stratum.transform("sum")
    conditions = [position < settings.val, position < settings.val + settings.test]
    drawn = np.select(conditions, ["val", "test"], "train")
    return pd.Series(drawn, index=units.index)


def _by_label(labels: pd.DataFrame, unit: pd.Series, settings: RandomSplit, rng: np.random.Generator) -> pd.Series:
    names = np.array(["train", "val", "test"])
    counts = _counts(labels, unit)
    shares = np.array([1 - settings.val - settings.test, settings.val, settings.test])
    return pd.Series(names[balanced(counts, shares, rng)], index=np.unique(unit))


def _counts(labels: pd.DataFrame, unit: pd.Series) -> np.ndarray:
    """Count each unit's positives and negatives of every label, and its rows; units are sorted."""
    kinds = [labels == 1, labels == 0, pd.Series(True, index=labels.index)]
    return pd.concat(kinds, axis=1).groupby(unit, sort=True).sum().to_numpy()
