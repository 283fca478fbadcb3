from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest

from ovr_ray.images import SPLITS
from ovr_ray.images.splitting import limited, split
from ovr_ray.recipe import RandomSplit


def many(seed: int = 0, count: int = 4000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"a": rng.random(count) < 0.22, "b": rng.random(count) < 0.01}).astype("float32")


def test_a_split_keeps_the_share_of_every_combination_of_labels() -> None:
    labels = many()
    splits = split(labels, RandomSplit(val=0.2, test=0.1, seed=1))
    for _, group in labels.groupby(["a", "b"]):
        shares = splits[group.index].value_counts() / len(group)
        assert shares["val"] == pytest.approx(0.2, abs=1 / len(group))
        assert shares["test"] == pytest.approx(0.1, abs=1 / len(group))


def test_a_split_depends_on_its_seed() -> None:
    labels = many()
    assert split(labels, RandomSplit(seed=1)).equals(split(labels, RandomSplit(seed=1)))
    assert not split(labels, RandomSplit(seed=1)).equals(split(labels, RandomSplit(seed=2)))


def test_combinations_of_one_row_fall_into_every_split_in_proportion() -> None:
    bits = np.arange(1024)[:, None] >> np.arange(10) & 1  # one row per combination of ten labels
    splits = split(pd.DataFrame(bits).astype("float32"), RandomSplit(val=0.2, test=0.2))
    assert splits.value_counts()["val"] == pytest.approx(205, abs=40)


def test_rows_of_one_group_stay_together() -> None:
    labels = many(count=600)
    groups = pd.Series(np.arange(600) // 6)
    splits = split(labels, RandomSplit(val=0.25, test=0.25), groups)
    assert len(set(zip(groups, splits, strict=True))) == groups.max() + 1
    assert splits.value_counts()["val"] == pytest.approx(150, abs=30)


def rare(seed: int, labels: int = 20, count: int = 1000) -> pd.DataFrame:
    """Return labels whose rates fall from 40 % to 1 %; every second label is correlated with the other such labels."""
    rng = np.random.default_rng(seed)
    severity, table = rng.random(count), {}
    for number, rate in enumerate(np.geomspace(0.4, 0.01, labels)):
        score = rng.random(count) + severity * (number % 2)
        table[f"l{number}"] = score >= np.sort(score)[-round(rate * count)]
    return pd.DataFrame(table).astype("float32")


@pytest.mark.parametrize("seed", range(5))
def test_every_split_has_its_share_of_positives_of_each_of_twenty_labels(seed: int) -> None:
    labels = rare(seed)
    assert (labels.groupby(list(labels)).size() == 1).sum() > 100  # many combinations occur once
    splits = split(labels, RandomSplit(val=0.2, test=0.1, seed=seed))
    for name, share in (("val", 0.2), ("test", 0.1)):
        assert (splits == name).sum() == pytest.approx(share * 1000, abs=10)
        assert labels[splits == name].sum().to_numpy() == pytest.approx(share * labels.sum().to_numpy(), abs=2)
    assert [labels.l19[splits == name].sum() for name in SPLITS] == [7, 2, 1]


def test_known_negatives_keep_their_share_if_most_labels_are_unknown() -> None:
    labels = rare(0, labels=5)
    labels["seldom_known"] = pd.Series([0.0] * 10 + [1.0] * 10).reindex(labels.index)
    splits = split(labels, RandomSplit())
    for value in (0, 1):
        assert splits[labels.seldom_known == value].value_counts().to_dict() == {"train": 6, "val": 2, "test": 2}


def test_rows_of_one_group_stay_together_with_many_labels() -> None:
    labels, groups = rare(0), pd.Series(np.arange(1000) // 5)
    splits = split(labels, RandomSplit(), groups)
    assert len(set(zip(groups, splits, strict=True))) == groups.max() + 1
    assert splits.value_counts()["val"] == pytest.approx(200, abs=25)  # at most five groups more or less
    missed = labels[splits == "val"].sum() - 0.2 * labels.sum()
    assert missed.abs().mean() < 3  # of 2 to 80 positives; on average over seeds 1.6, and 3.7 if combinations were cut
    assert abs(missed.l19) <= 1


def test_a_split_of_two_labels_never_changes_between_versions() -> None:
    """Compare with a stored hash: with another split, a search of an older version could not be resumed."""
    splits = split(many(), RandomSplit(val=0.2, test=0.1, seed=1))
    assert hashlib.sha256("".join(splits).encode()).hexdigest()[:16] == "65f60cd923efc096"


def test_a_limit_keeps_the_shares_of_twenty_labels() -> None:
    labels = rare(0)
    kept = labels.loc[limited(labels, 200)]
    assert len(kept) == pytest.approx(200, abs=5)
    assert kept.sum().to_numpy() == pytest.approx(0.2 * labels.sum().to_numpy(), abs=2)
