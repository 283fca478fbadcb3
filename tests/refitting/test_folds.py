from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ovr_ray.errors import BadInput
from ovr_ray.images import LabelTable, read_labels
from ovr_ray.recipe import Recipe
from ovr_ray.refitting.folds import NONE, assign, chosen_labels

FOLDS = 4
Make = Callable[..., Recipe]


def table_of(recipe: Recipe) -> LabelTable:
    return read_labels(recipe.data, recipe.tasks)


def test_every_image_that_counts_is_held_out_once_and_none_of_the_test_split(make_recipe: Make) -> None:
    recipe = make_recipe()
    table = table_of(recipe).without([0, 1])
    folds = assign(table, "crack", recipe.data, FOLDS, seed=0)
    counts = (table.splits != "test") & table.labels.crack.notna()
    assert ((folds != NONE) == counts).all()
    assert set(folds[counts]) == set(range(FOLDS))
    for number in range(FOLDS):
        held_out = chosen_labels(table, "crack", folds == number)
        assert np.isfinite(held_out).sum() == (folds == number).sum()


def test_folds_have_equal_shares_of_positives_and_follow_from_the_seed(make_recipe: Make) -> None:
    recipe = make_recipe()
    table = table_of(recipe)
    folds = assign(table, "inactive", recipe.data, FOLDS, seed=3)
    positives = [np.nansum(chosen_labels(table, "inactive", folds == number)) for number in range(FOLDS)]
    assert max(positives) - min(positives) <= 1
    assert np.array_equal(folds, assign(table, "inactive", recipe.data, FOLDS, seed=3))
    assert not np.array_equal(folds, assign(table, "inactive", recipe.data, FOLDS, seed=4))


def test_the_images_of_a_group_are_in_one_fold(make_recipe: Make, cells: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(cells / "data.csv", sep=";")
    labels["panel"] = [f"panel {row % 20}" for row in range(len(labels))]
    labels.loc[:9, "panel"] = ""  # each a group of its own
    labels.to_csv(tmp_path / "grouped.csv", sep=";", index=False)
    recipe = make_recipe(data={"labels": str(tmp_path / "grouped.csv"), "group": "panel"})
    table = table_of(recipe)
    folds = assign(table, "crack", recipe.data, FOLDS, seed=0)
    by_panel = pd.Series(folds).groupby(table.files.map(labels.set_index("filename").panel).to_numpy())
    assert (by_panel.nunique().drop("") == 1).all()
    assert by_panel.nunique()[""] > 1


def test_files_of_the_same_content_are_in_one_fold_if_they_are_to_stay_together(
    make_recipe: Make, cells: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cells, tmp_path / "cells"))
    for number in range(0, 80, 2):
        shutil.copy(folder / f"images/cell{number:02}.png", folder / f"images/cell{number + 1:02}.png")
    recipe = make_recipe(data={"images": str(folder), "duplicates": "together"})
    table = table_of(recipe)
    folds = pd.Series(assign(table, "crack", recipe.data, FOLDS, seed=0))
    pair = table.files.str.extract(r"(\d+)", expand=False).astype(int) // 2
    assert folds.groupby(pair).nunique().eq(1).all()
    assert set(folds) == {NONE, *range(FOLDS)}


def test_more_folds_than_images_of_a_class_are_refused(make_recipe: Make) -> None:
    recipe = make_recipe()
    with pytest.raises(BadInput, match="--folds 40, task 'inactive': needs images of both classes"):
        assign(table_of(recipe), "inactive", recipe.data, 40, seed=0)
