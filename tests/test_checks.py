from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ovr_ray.checks import check
from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Recipe
from tests.support import BACKBONE, SIZE


def with_tasks(recipe: Recipe, **changes: dict[str, Any]) -> Recipe:
    """Return a recipe whose tasks have other defaults."""
    tasks = {
        name: task.model_copy(update={"default": task.default.model_copy(update=changes.get(name, {}))})
        for name, task in recipe.tasks.items()
    }
    return recipe.model_copy(update={"tasks": tasks})


@pytest.fixture
def folder(cells: Path, tmp_path: Path) -> Path:
    """Return a copy of the cells that a test may change."""
    return Path(shutil.copytree(cells, tmp_path / "cells"))


@pytest.fixture
def copied(make_recipe: Callable[..., Recipe], folder: Path) -> Callable[..., Recipe]:
    """Return a function that makes a recipe on the copied cells."""
    data = {"labels": str(folder / "data.csv"), "images": str(folder)}
    return lambda **more: make_recipe(data=data | more)


def test_a_recipe_without_a_fault_gives_its_labels(make_recipe: Callable[..., Recipe]) -> None:
    table = check(make_recipe(), images=True)
    assert len(table.files) == 80
    assert table.labels.sum().tolist() == [32, 20]
    assert set(table.splits) == {"train", "val", "test"}


def test_faults_of_labels_backbones_and_weights_come_together(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(data={"filename": "file"})
    with pytest.raises(BadInput) as caught:
        check(with_tasks(recipe, crack={"backbone": "resnet81"}, inactive={"weights": "/no.pth"}))
    message = str(caught.value)
    assert "has no column 'file'" in message
    assert "tasks.crack: backbone 'resnet81'" in message
    assert "there is no such backbone" in message
    assert f"tasks.inactive: backbone '{BACKBONE}', weights '/no.pth'" in message
    assert "there is no file /no.pth" in message


def test_a_backbone_that_cannot_work_on_the_images_is_refused(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(BadInput, match=f"tasks.inactive: backbone 'inception_v3': cannot work on images of {SIZE}"):
        check(with_tasks(make_recipe(), inactive={"backbone": "inception_v3"}))


def test_a_combination_of_several_tasks_is_checked_once_and_named_by_the_first(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fault(backbone: str, size: int, weights: str | None) -> Fault:
        asked.append((backbone, size, weights))
        return Fault(f"backbone {backbone!r}", "cannot be had")

    monkeypatch.setattr("ovr_ray.checks.weights_fault", fault)
    with pytest.raises(BadInput) as caught:
        check(make_recipe())
    assert asked == [(BACKBONE, SIZE, None)]
    assert str(caught.value) == f"tasks.crack: backbone '{BACKBONE}': cannot be had"


def test_undecodable_images_are_named(copied: Callable[..., Recipe], folder: Path) -> None:
    name = pd.read_csv(folder / "data.csv", sep=";").filename[7]
    (folder / name).write_text("not an image")
    with pytest.raises(BadInput) as caught:
        check(copied(), images=True)
    assert f"{name}: not an image" in str(caught.value)
    assert len(check(copied()).files) == 80  # images are only looked for, not decoded


def test_images_that_are_to_be_skipped_count_for_no_task(copied: Callable[..., Recipe], folder: Path) -> None:
    (folder / pd.read_csv(folder / "data.csv", sep=";").filename[7]).write_text("not an image")
    table = check(copied(on_bad_image="skip"), images=True)
    assert np.flatnonzero(table.labels.isna().all(axis=1)).tolist() == [7]
    assert len(table.files) == 80


def test_images_that_occur_twice_are_noted_or_a_fault_once_the_images_are_read(
    copied: Callable[..., Recipe], folder: Path
) -> None:
    shutil.copy(folder / "images/cell05.png", folder / "images/cell06.png")
    (note,) = check(copied(), images=True).notes
    assert "1 image occurs more than once" in note.problem
    assert "'images/cell05.png' = 'images/cell06.png': in " in note.problem
    assert check(copied(duplicates="error")).notes == ()
    (folder / "images/cell07.png").write_text("not an image")
    with pytest.raises(BadInput) as caught:
        check(copied(duplicates="error"), images=True)
    assert [fault.where for fault in caught.value.faults] == ["data.images", "data.images"]


def test_dark_images_of_more_than_8_bits_are_noted_until_the_recipe_says_what_is_white(
    copied: Callable[..., Recipe], folder: Path
) -> None:
    for file in (folder / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 15).save(file)
    (note,) = check(copied(), images=True).notes
    assert note.remedy == "say what is white, such as data.white: 4095 (12 bits)"
    assert check(copied(white=4095), images=True).notes == ()


def test_a_class_of_which_every_image_is_to_be_skipped_is_an_error(copied: Callable[..., Recipe], folder: Path) -> None:
    recipe = copied(on_bad_image="skip")
    before = check(recipe)
    for row in before.rows("val")[before.labels["inactive"].to_numpy()[before.rows("val")] == 1]:
        (folder / before.files[row]).write_text("not an image")
    with pytest.raises(BadInput, match="task 'inactive': no positive image falls into the val split"):
        check(recipe, images=True)
