from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ovr_ray.images import contact_sheet, read_labels
from ovr_ray.images.preview import DRAWS, GAP, HEADING, SAMPLES, TILE, widest_augment
from ovr_ray.recipe import Augment, Recipe


def test_every_combination_of_labels_is_shown_before_and_after_augmentation(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(augment={"brightness": 0.5})
    table = read_labels(recipe.data, recipe.tasks)
    combinations = table.labels[table.splits == "train"].drop_duplicates()
    sheet = np.asarray(contact_sheet(recipe, table))
    block = HEADING + (DRAWS + 1) * (TILE + GAP) + GAP
    assert sheet.shape == (HEADING + len(combinations) * block, SAMPLES * (TILE + GAP) + GAP, 3)
    rows = [sheet[2 * HEADING + GAP + at * (TILE + GAP) :][:TILE, GAP : GAP + TILE] for at in range(DRAWS + 1)]
    assert np.ptp(rows[0]) > 20
    assert (rows[0] != rows[1]).any()
    assert (rows[1] != rows[2]).any()


def test_bad_files_are_left_out(make_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cells, tmp_path / "cells"))
    for number in range(0, 80, 2):
        (folder / f"images/cell{number:02}.png").write_bytes(b"")
    recipe = make_recipe(data={"images": str(folder)})
    assert contact_sheet(recipe, read_labels(recipe.data, recipe.tasks)).height > TILE


def test_augmentation_uses_the_widest_settings_that_any_trial_may_use(make_recipe: Callable[..., Recipe]) -> None:
    space = {"rotation": {"uniform": [0, 15]}, "horizontal_flip": 0.1}
    tasks = {"crack": {"space": space}, "inactive": {"default": {"brightness": 0.3}}}
    recipe = make_recipe(tasks=tasks, augment={"shift": 0.1, "horizontal_flip": 0.2})
    assert widest_augment(recipe) == Augment(horizontal_flip=0.2, rotation=15, shift=0.1, brightness=0.3)
