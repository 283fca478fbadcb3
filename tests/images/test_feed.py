from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ovr_ray.images.feed as feed_module
from ovr_ray.errors import BadInput
from ovr_ray.images import Feed, LabelTable, load_parts, pixel_statistics, read_image, read_labels
from ovr_ray.recipe import Augment, Recipe

pytestmark = pytest.mark.usefixtures("ray_session")
NO_FLIPS, ALL_FLIPS = Augment(horizontal_flip=0, vertical_flip=0), Augment(horizontal_flip=1, vertical_flip=1)


@pytest.fixture
def table(make_recipe: Callable[..., Recipe]) -> LabelTable:
    recipe = make_recipe()
    return read_labels(recipe.data, recipe.tasks)


@pytest.fixture
def pixels(make_recipe: Callable[..., Recipe], table: LabelTable) -> np.ndarray:
    """What every row's image looks like, decoded by hand."""
    data = make_recipe().data
    return np.stack([read_image(f"{data.images}/{name}", "gray", data.image_size) for name in table.files])


@pytest.fixture
def feed(make_recipe: Callable[..., Recipe], table: LabelTable) -> Feed:
    """Of the train part; the label of a row is its number, so that a test can tell who is who."""
    images, _ = load_parts(table, make_recipe().data, ["train"])
    return Feed(images["train"].dataset, np.arange(len(table.files), dtype=np.float32), batch_size=16)


def gathered(batches: object) -> tuple[np.ndarray, np.ndarray]:
    images, rows = zip(*batches, strict=True)  # type: ignore[call-overload]
    return torch.cat(images).numpy(), torch.cat(rows).numpy().astype(int)


def test_ordered_gives_every_image_once_as_it_is(feed: Feed, table: LabelTable, pixels: np.ndarray) -> None:
    images, rows = gathered(feed.ordered())
    assert rows.tolist() == table.rows("train").tolist()
    assert (images == pixels[rows]).all()
    assert images.dtype == np.uint8


def test_an_epoch_gives_every_image_once_in_an_order_of_its_own(feed: Feed, table: LabelTable) -> None:
    orders = [gathered(feed.shuffled(epoch, 0, NO_FLIPS))[1].tolist() for epoch in (1, 2)]
    assert sorted(orders[0]) == sorted(orders[1]) == table.rows("train").tolist()
    assert orders[0] != orders[1] != table.rows("train").tolist()


def test_an_epoch_is_the_same_whenever_it_is_run(feed: Feed) -> None:
    first, again = (gathered(feed.shuffled(3, 7, Augment())) for _ in range(2))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()


def test_the_order_does_not_depend_on_which_block_was_decoded_first(
    make_recipe: Callable[..., Recipe], table: LabelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "IMAGES_PER_BLOCK", 5)
    for _ in range(3):
        images, _ = load_parts(table, make_recipe().data, ["train"])
        rows = [row["row"] for row in images["train"].dataset.take_all()]
        assert rows == table.rows("train").tolist()


def test_flips_are_flips_at_the_asked_rate(feed: Feed, pixels: np.ndarray) -> None:
    images, rows = gathered(feed.shuffled(1, 0, ALL_FLIPS))
    assert (images == pixels[rows][:, :, ::-1, ::-1]).all()
    images, rows = gathered(feed.shuffled(1, 0, Augment(horizontal_flip=0.5, vertical_flip=0)))
    flipped = (images == pixels[rows][:, :, :, ::-1]).all((1, 2, 3))
    assert ((images == pixels[rows]).all((1, 2, 3)) ^ flipped).all()
    assert 0.2 < flipped.mean() < 0.8


def test_flips_differ_between_epochs(feed: Feed) -> None:
    by_row = []
    for epoch in (1, 2):
        images, rows = gathered(feed.shuffled(epoch, 0, Augment()))
        by_row.append(images[np.argsort(rows)])
    assert (by_row[0] != by_row[1]).any((1, 2, 3)).mean() > 0.5


def test_rows_without_a_label_are_left_out_and_batches_stay_full(feed: Feed, table: LabelTable) -> None:
    labels = feed.labels.copy()
    labels[table.rows("train")[::3]] = np.nan
    some = Feed(feed.images, labels, batch_size=8)
    sizes = [len(rows) for _, rows in some.shuffled(1, 0, Augment())]
    assert sizes == [8] * (len(sizes) - 1) + [sum(sizes) - 8 * (len(sizes) - 1)]
    assert sorted(gathered(some.ordered())[1]) == sorted(set(table.rows("train")) - set(table.rows("train")[::3]))


def test_pixel_statistics_are_those_of_the_images(
    make_recipe: Callable[..., Recipe], table: LabelTable, pixels: np.ndarray
) -> None:
    images, _ = load_parts(table, make_recipe().data, ["train"])
    mean, std = pixel_statistics(images["train"])
    train = pixels[table.rows("train")] / 255
    assert mean == pytest.approx([train.mean()], abs=1e-5)
    assert std == pytest.approx([train.std()], abs=1e-5)


@pytest.fixture
def damaged(cells: Path, tmp_path: Path) -> Path:
    """The cells, two of them damaged."""
    folder = tmp_path / "cells"
    shutil.copytree(cells, folder)
    (folder / "images/cell05.png").write_bytes(b"")
    (folder / "images/cell60.png").write_text("not an image")
    return folder


def test_all_undecodable_images_are_named_at_once(make_recipe: Callable[..., Recipe], damaged: Path) -> None:
    recipe = make_recipe(data={"images": str(damaged)})
    with pytest.raises(BadInput) as caught:
        load_parts(read_labels(recipe.data, recipe.tasks), recipe.data, ["train", "val", "test"])
    assert "2 of 80 images cannot be decoded" in str(caught.value)
    assert "images/cell05.png: the file is empty" in str(caught.value)
    assert "images/cell60.png: not an image" in str(caught.value)


def test_skipped_images_count_for_no_task(make_recipe: Callable[..., Recipe], damaged: Path) -> None:
    recipe = make_recipe(data={"images": str(damaged), "on_bad_image": "skip"})
    images, table = load_parts(read_labels(recipe.data, recipe.tasks), recipe.data, ["train", "val", "test"])
    assert {row for decoded in images.values() for row in decoded.bad} == {5, 60}
    assert table.labels.isna().any(axis=1).sum() == 2
