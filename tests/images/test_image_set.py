from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import ray
from PIL import Image

from ovr_ray.errors import BadInput, RunFailed
from ovr_ray.images import ImageSet, LabelTable, image_set, load, prepare, read_image, read_labels, review, shards
from ovr_ray.images.shards import missing
from ovr_ray.recipe import Data, Recipe

pytestmark = pytest.mark.usefixtures("ray_session")
MUCH, NOTHING = 1e9, 0.0
"""Bytes of memory: enough for all images, or for none, so that they are streamed."""


@pytest.fixture(autouse=True)
def _several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 8 * 32 * 32)


@pytest.fixture
def own_cells(cells: Path, tmp_path: Path) -> Path:
    """A copy of the cells that a test may change."""
    return Path(shutil.copytree(cells, tmp_path / "cells"))


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], own_cells: Path) -> Recipe:
    return make_recipe(data={"labels": str(own_cells / "data.csv"), "images": str(own_cells), "image_size": 32})


def loaded(recipe: Recipe, memory: float = MUCH) -> tuple[ImageSet, LabelTable]:
    return load(read_labels(recipe.data, recipe.tasks), recipe.data, recipe.storage, memory)


def by_hand(data: Data, table: LabelTable) -> np.ndarray:
    return np.stack([read_image(f"{data.images}/{name}", data, data.image_size) for name in table.files])


def files_of(recipe: Recipe) -> dict[str, int]:
    """Return the time of writing of every shard, by name."""
    return {file.name: file.stat().st_mtime_ns for file in Path(recipe.storage).rglob("*.parquet")}


@pytest.mark.parametrize("memory", [MUCH, NOTHING])
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_windows_yield_every_image_of_train_and_val_as_it_was_decoded(
    make_recipe: Callable[..., Recipe], own_cells: Path, memory: float, color: str
) -> None:
    recipe = make_recipe(data={"images": str(own_cells), "color": color})
    images, table = loaded(recipe, memory)
    assert (images.blocks is None) == (memory == NOTHING)
    wanted = (table.splits != "test").to_numpy()
    pixels = by_hand(recipe.data, table)
    seen = {row: image for window in images.windows(wanted, None) for row, image in window.items()}
    assert sorted(seen) == np.flatnonzero(wanted).tolist()
    assert all((pixels[row] == image).all() for row, image in seen.items())


def test_images_in_memory_are_read_only_views_of_shared_memory(recipe: Recipe) -> None:
    images, table = loaded(recipe)
    (window,) = images.windows((table.splits == "train").to_numpy(), None)
    assert not any(image.flags.writeable or image.flags.owndata for image in window.values())


def test_a_second_run_with_a_corrected_label_and_another_split_decodes_nothing(recipe: Recipe) -> None:
    loaded(recipe)
    before = files_of(recipe)
    assert len(before) > 4
    labels = Path(recipe.data.labels)
    lines = labels.read_text().splitlines()
    lines[1] = lines[1].replace(";0", ";1")
    labels.write_text("\n".join(lines))
    split = recipe.data.split.model_copy(update={"seed": 7})
    loaded(recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": split})}))
    assert files_of(recipe) == before


def test_a_changed_image_makes_only_its_own_shard_again(recipe: Recipe, own_cells: Path) -> None:
    loaded(recipe)
    before = files_of(recipe)
    shutil.copy(own_cells / "images/cell05.png", own_cells / "images/cell06.png")
    os.utime(own_cells / "images/cell06.png")
    images, table = loaded(recipe)
    new = files_of(recipe).keys() - before.keys()
    assert len(new) == 1
    row = table.files.tolist().index("images/cell06.png")
    seen = {row: image for window in images.windows(np.ones(80, bool), None) for row, image in window.items()}
    if row in seen:  # images of the test split are not in memory
        assert (seen[row] == by_hand(recipe.data, table)[row]).all()


def test_another_white_makes_other_shards_with_other_pixels(recipe: Recipe, own_cells: Path) -> None:
    Image.fromarray(np.full((32, 32), 2000, np.uint16)).save(own_cells / "images/cell05.png")
    brightness = {}
    for white in (None, 4000):
        told = recipe.model_copy(update={"data": recipe.data.model_copy(update={"white": white})})
        images, table = loaded(told)
        row = table.files.tolist().index("images/cell05.png")
        brightness[white] = images.pixel_statistics(np.array([row]))[0]
    assert brightness == {None: pytest.approx([8 / 255]), 4000: pytest.approx([128 / 255])}
    assert len(files_of(recipe)) == 2 * len(images.shards)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("memory", [MUCH, NOTHING])
@pytest.mark.parametrize("damage", ["half", "empty", "a flipped bit"])
def test_a_damaged_shard_is_detected_and_made_again(recipe: Recipe, damage: str, memory: float) -> None:
    images, table = loaded(recipe)
    wanted, pixels = (table.splits != "test").to_numpy(), by_hand(recipe.data, table)
    whole = {}
    for shard in images.shards:
        if wanted[shard.rows].any():
            content = whole[shard.file] = shard.file.read_bytes()
            at = content.index(pixels[shard.rows[wanted[shard.rows]][0]].tobytes())
            damaged = {"half": content[: len(content) // 2], "empty": b"", "a flipped bit": flipped(content, at + 500)}
            shard.file.write_bytes(damaged[damage])
    images, table = loaded(recipe, memory)
    for window in images.windows(wanted, None):
        assert all((pixels[row] == image).all() for row, image in window.items())
    assert all(file.read_bytes() == content for file, content in whole.items())


def test_a_stream_shuffles_its_shards_and_yields_at_most_one_window_of_them_at_a_time(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_set, "WINDOW", 2)
    images, table = loaded(recipe, NOTHING)
    wanted = (table.splits == "train").to_numpy()
    orders = []
    for seed in (1, 2):
        windows = [list(window) for window in images.windows(wanted, np.random.default_rng(seed))]
        assert all(len(window) <= 2 * max(len(shard.rows) for shard in images.shards) for window in windows)
        orders.append([row for window in windows for row in window])
    assert sorted(orders[0]) == sorted(orders[1]) == table.rows("train").tolist()
    assert orders[0] != orders[1]


def test_prepare_makes_only_the_missing_shards(recipe: Recipe) -> None:
    table = read_labels(recipe.data, recipe.tasks)
    all_shards = prepare(table, recipe.data, recipe.storage)
    assert not missing(all_shards)
    before = files_of(recipe)
    all_shards[0].file.unlink()
    prepare(table, recipe.data, recipe.storage)
    after = files_of(recipe)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {all_shards[0].file.name}


def test_a_storage_that_cannot_be_written_is_reported(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "_images").write_text("in the way")
    with pytest.raises(RunFailed, match=r"decoded images cannot be written to .*_images"):
        prepare(read_labels(recipe.data, recipe.tasks), recipe.data, recipe.storage)


def test_a_shard_with_an_unreadable_file_is_not_stored(recipe: Recipe, own_cells: Path) -> None:
    table = read_labels(recipe.data, recipe.tasks)
    (own_cells / "images/cell05.png").unlink()
    (not_stored,) = missing(prepare(table, recipe.data, recipe.storage))
    assert "images/cell05.png" in not_stored.filenames
    assert not_stored.facts().error.str.startswith("cannot be read: No such file").sum() == 1


def test_pixel_statistics_are_those_of_the_readable_images(recipe: Recipe, own_cells: Path) -> None:
    images, table = loaded(recipe)
    train = by_hand(recipe.data, table)[table.rows("train")] / 255
    mean, std = images.pixel_statistics(table.rows("train"))
    assert mean == pytest.approx([train.mean()], abs=1e-6)
    assert std == pytest.approx([train.std()], abs=1e-6)
    name = table.files[table.rows("train")[0]]
    (own_cells / name).write_bytes(b"")
    images, table = loaded(recipe.model_copy(update={"data": recipe.data.model_copy(update={"on_bad_image": "skip"})}))
    assert images.pixel_statistics(table.rows("train"))[0] == pytest.approx([train[1:].mean()], abs=1e-6)


@pytest.fixture
def damaged(own_cells: Path) -> Path:
    """The copied cells, with two damaged images."""
    (own_cells / "images/cell05.png").write_bytes(b"")
    (own_cells / "images/cell60.png").write_text("not an image")
    return own_cells


def test_all_images_that_cannot_be_decoded_are_named_in_one_error(recipe: Recipe, damaged: Path) -> None:
    with pytest.raises(BadInput) as caught:
        loaded(recipe)
    assert "2 of 80 images cannot be decoded" in str(caught.value)
    assert "images/cell05.png: the file is empty" in str(caught.value)
    assert "images/cell60.png: not an image" in str(caught.value)


def test_very_many_bad_images_are_named_up_to_a_limit_with_the_reasons_counted(
    recipe: Recipe, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "NAMED", 1)
    with pytest.raises(BadInput) as caught:
        loaded(recipe)
    assert "images/cell05.png" in str(caught.value)
    assert "images/cell60.png" not in str(caught.value)
    counted = "and 1 more; most frequent reasons of all: 'the file is empty' (1), 'not an image"
    assert counted in str(caught.value)


def test_skipped_images_count_for_no_task(recipe: Recipe, damaged: Path) -> None:
    data = recipe.data.model_copy(update={"on_bad_image": "skip"})
    images, table = loaded(recipe.model_copy(update={"data": data}))
    assert images.bad.keys() == {5, 60}
    assert table.labels.isna().any(axis=1).sum() == 2


def test_images_that_occur_twice_are_noted_or_refused_before_anything_is_trained(
    recipe: Recipe, own_cells: Path
) -> None:
    shutil.copy(own_cells / "images/cell05.png", own_cells / "images/cell06.png")
    images, table = loaded(recipe)
    assert images.notes == table.notes
    assert "'images/cell05.png' = 'images/cell06.png'" in images.notes[0].problem
    before = files_of(recipe)
    data = recipe.data.model_copy(update={"duplicates": "error"})
    with pytest.raises(BadInput, match="1 image occurs more than once"):
        loaded(recipe.model_copy(update={"data": data}))
    assert files_of(recipe) == before


def refuse(*arguments: Any, **options: Any) -> NoReturn:
    raise AssertionError("Ray was called after the first epoch")


@pytest.mark.parametrize("memory", [MUCH, NOTHING])
def test_no_epoch_after_the_first_calls_ray(recipe: Recipe, memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    images, table = loaded(recipe, memory)
    wanted = (table.splits == "train").to_numpy()
    first = {row: image for window in images.windows(wanted, None) for row, image in window.items()}
    for name in ("get", "put", "remote", "wait"):
        monkeypatch.setattr(ray, name, refuse)
    windows = list(images.windows(wanted, np.random.default_rng(0)))
    again = {row: image for window in windows for row, image in window.items()}
    assert sorted(again) == sorted(first) == table.rows("train").tolist()
    assert all((again[row] == image).all() for row, image in first.items())
