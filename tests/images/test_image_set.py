from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ovr_ray.errors import BadInput, RunFailed
from ovr_ray.images import ImageSet, LabelTable, image_set, load, prepare, read_image, read_labels, shards
from ovr_ray.images.shards import missing
from ovr_ray.recipe import Data, Recipe

pytestmark = pytest.mark.usefixtures("ray_session")
MUCH, NOTHING = 1e9, 0.0
"""Bytes of memory: all images fit, or none, and they are streamed."""


@pytest.fixture(autouse=True)
def _several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 8 * 32 * 32)


@pytest.fixture
def own_cells(cells: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(cells, tmp_path / "cells"))


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], own_cells: Path) -> Recipe:
    return make_recipe(data={"labels": str(own_cells / "data.csv"), "images": str(own_cells), "image_size": 32})


def loaded(recipe: Recipe, memory: float = MUCH) -> tuple[ImageSet, LabelTable]:
    return load(read_labels(recipe.data, recipe.tasks), recipe.data, recipe.storage, memory)


def by_hand(data: Data, table: LabelTable) -> np.ndarray:
    return np.stack([read_image(f"{data.images}/{name}", data.color, data.image_size) for name in table.files])


def files_of(recipe: Recipe) -> dict[str, int]:
    """Name -> time of writing."""
    return {file.name: file.stat().st_mtime_ns for file in Path(recipe.storage).rglob("*.parquet")}


@pytest.mark.parametrize("memory", [MUCH, NOTHING])
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_every_image_of_train_and_validation_is_there_as_the_decoder_gives_it(
    make_recipe: Callable[..., Recipe], own_cells: Path, memory: float, color: str
) -> None:
    recipe = make_recipe(data={"images": str(own_cells), "color": color})
    images, table = loaded(recipe, memory)
    assert (images.blocks is None) == (memory == NOTHING)
    wanted = (table.parts != "test").to_numpy()
    pixels = by_hand(recipe.data, table)
    seen = {row: image for window in images.windows(wanted, None) for row, image in window.items()}
    assert sorted(seen) == np.flatnonzero(wanted).tolist()
    assert all((pixels[row] == image).all() for row, image in seen.items())


def test_images_in_memory_are_views_of_what_all_trials_share(recipe: Recipe) -> None:
    images, table = loaded(recipe)
    (window,) = images.windows((table.parts == "train").to_numpy(), None)
    assert not any(image.flags.writeable or image.flags.owndata for image in window.values())


def test_a_second_run_decodes_nothing_and_a_corrected_label_or_another_split_neither(recipe: Recipe) -> None:
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


def test_a_changed_image_is_decoded_anew_with_its_shard_alone(recipe: Recipe, own_cells: Path) -> None:
    loaded(recipe)
    before = files_of(recipe)
    shutil.copy(own_cells / "images/cell05.png", own_cells / "images/cell06.png")
    os.utime(own_cells / "images/cell06.png")
    images, table = loaded(recipe)
    new = files_of(recipe).keys() - before.keys()
    assert len(new) == 1
    row = table.files.tolist().index("images/cell06.png")
    seen = {row: image for window in images.windows(np.ones(80, bool), None) for row, image in window.items()}
    if row in seen:  # not where it is of the test part
        assert (seen[row] == by_hand(recipe.data, table)[row]).all()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("memory", [MUCH, NOTHING])
@pytest.mark.parametrize("damage", ["half", "empty", "a flipped bit"])
def test_a_damaged_shard_is_noticed_and_made_again(recipe: Recipe, damage: str, memory: float) -> None:
    images, table = loaded(recipe)
    wanted, pixels = (table.parts != "test").to_numpy(), by_hand(recipe.data, table)
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


def test_a_stream_shuffles_its_shards_and_holds_a_window_of_them(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_set, "WINDOW", 2)
    images, table = loaded(recipe, NOTHING)
    wanted = (table.parts == "train").to_numpy()
    orders = []
    for seed in (1, 2):
        windows = [list(window) for window in images.windows(wanted, np.random.default_rng(seed))]
        assert all(len(window) <= 2 * max(len(shard.rows) for shard in images.shards) for window in windows)
        orders.append([row for window in windows for row in window])
    assert sorted(orders[0]) == sorted(orders[1]) == table.rows("train").tolist()
    assert orders[0] != orders[1]


def test_prepare_decodes_what_is_missing_alone(recipe: Recipe) -> None:
    table = read_labels(recipe.data, recipe.tasks)
    every = prepare(table, recipe.data, recipe.storage)
    assert not missing(every)
    before = files_of(recipe)
    every[0].file.unlink()
    prepare(table, recipe.data, recipe.storage)
    after = files_of(recipe)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {every[0].file.name}


def test_a_storage_that_takes_no_more_is_told_in_words(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "_images").write_text("in the way")
    with pytest.raises(RunFailed, match=r"decoded images cannot be written to .*_images"):
        prepare(read_labels(recipe.data, recipe.tasks), recipe.data, recipe.storage)


def test_a_file_that_cannot_be_read_now_is_asked_for_again_next_time(recipe: Recipe, own_cells: Path) -> None:
    table = read_labels(recipe.data, recipe.tasks)
    (own_cells / "images/cell05.png").unlink()
    every = prepare(table, recipe.data, recipe.storage)
    (lacking,) = missing(every)
    assert "images/cell05.png" in lacking.filenames
    assert lacking.facts().error.str.startswith("cannot be read: No such file").sum() == 1


def test_statistics_are_those_of_the_readable_images(recipe: Recipe, own_cells: Path) -> None:
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
    """The cells, two of them damaged."""
    (own_cells / "images/cell05.png").write_bytes(b"")
    (own_cells / "images/cell60.png").write_text("not an image")
    return own_cells


def test_all_undecodable_images_are_named_at_once(recipe: Recipe, damaged: Path) -> None:
    with pytest.raises(BadInput) as caught:
        loaded(recipe)
    assert "2 of 80 images cannot be decoded" in str(caught.value)
    assert "images/cell05.png: the file is empty" in str(caught.value)
    assert "images/cell60.png: not an image" in str(caught.value)


def test_of_very_many_bad_images_the_first_are_named_and_all_reasons(
    recipe: Recipe, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_set, "NAMED", 1)
    with pytest.raises(BadInput) as caught:
        loaded(recipe)
    assert "images/cell05.png" in str(caught.value)
    assert "images/cell60.png" not in str(caught.value)
    assert "and 1 more: 1 in all 'the file is empty', 1 in all 'not an image" in str(caught.value)


def test_skipped_images_count_for_no_task(recipe: Recipe, damaged: Path) -> None:
    data = recipe.data.model_copy(update={"on_bad_image": "skip"})
    images, table = loaded(recipe.model_copy(update={"data": data}))
    assert images.bad.keys() == {5, 60}
    assert table.labels.isna().any(axis=1).sum() == 2


def test_after_the_first_epoch_ray_is_asked_for_nothing(recipe: Recipe) -> None:
    images, table = loaded(recipe)
    wanted = (table.parts == "train").to_numpy()
    (first,) = images.windows(wanted, None)
    object.__setattr__(images, "dataset", "whatever is asked of it is an error")
    (again,) = images.windows(wanted, np.random.default_rng(0))
    assert again.keys() == first.keys()
    assert all(again[row] is image for row, image in first.items())
