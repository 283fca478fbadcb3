from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from ovr_ray.images import Batch, Feed, LabelTable, image_set, load, read_image, read_labels, shards
from ovr_ray.recipe import Augment, Recipe, parse
from tests.support import plain_recipe

pytestmark = pytest.mark.usefixtures("ray_session")
NO_FLIPS, ALL_FLIPS = Augment(horizontal_flip=0, vertical_flip=0), Augment(horizontal_flip=1, vertical_flip=1)


@pytest.fixture(scope="module")
def recipe(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse(plain_recipe(cells, tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def table(recipe: Recipe) -> LabelTable:
    return read_labels(recipe.data, recipe.tasks)


@pytest.fixture(scope="module")
def pixels(recipe: Recipe, table: LabelTable) -> np.ndarray:
    """Every row's image, decoded without an image set."""
    data = recipe.data
    return np.stack([read_image(f"{data.images}/{name}", data, data.image_size) for name in table.files])


@pytest.fixture(scope="module", params=["in memory", "streamed"])
def feed(request: pytest.FixtureRequest, recipe: Recipe, table: LabelTable) -> Feed:
    """A feed of the train split; each label is its row number, so that tests can identify the images."""
    memory = 1e9 if request.param == "in memory" else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 8 * 32 * 32)
        images, _ = load(table, recipe.data, recipe.storage, memory)
    labels = np.where(table.splits == "train", np.arange(len(table.files)), np.nan).astype(np.float32)
    return Feed(images, labels, batch_size=16)


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "WINDOW", 2)


def gathered(batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    images, rows = zip(*batches, strict=True)
    return torch.cat(images).numpy(), torch.cat(rows).numpy().astype(int)


def test_ordered_yields_every_image_once_unchanged(feed: Feed, table: LabelTable, pixels: np.ndarray) -> None:
    images, rows = gathered(feed.ordered())
    assert sorted(rows) == table.rows("train").tolist()
    assert (images == pixels[rows]).all()
    assert images.dtype == np.uint8
    assert gathered(feed.ordered())[1].tolist() == rows.tolist()


def test_every_epoch_yields_every_image_once_in_a_different_order(feed: Feed, table: LabelTable) -> None:
    orders = [gathered(feed.shuffled(epoch, 0, NO_FLIPS))[1].tolist() for epoch in (1, 2)]
    assert sorted(orders[0]) == sorted(orders[1]) == table.rows("train").tolist()
    assert orders[0] != orders[1]
    assert orders[0] != gathered(feed.ordered())[1].tolist()


def test_an_epoch_is_reproducible(feed: Feed) -> None:
    changed = Augment(rotation=10, brightness=0.2)
    first, again = (gathered(feed.shuffled(3, 7, changed)) for _ in range(2))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()


def test_all_batches_but_the_last_are_full(feed: Feed, table: LabelTable) -> None:
    for batches in (feed.ordered(), feed.shuffled(1, 0, NO_FLIPS)):
        sizes = [len(rows) for _, rows in batches]
        assert sizes[:-1] == [16] * ((len(table.rows("train")) - 1) // 16)


def test_rows_without_a_label_are_left_out(feed: Feed, table: LabelTable) -> None:
    labels = feed.labels.copy()
    labels[table.rows("train")[::3]] = np.nan
    labelled = Feed(feed.images, labels, batch_size=8)
    expected = sorted(set(table.rows("train")) - set(table.rows("train")[::3]))
    assert sorted(gathered(labelled.ordered())[1]) == expected
    assert sorted(gathered(labelled.shuffled(1, 0, NO_FLIPS))[1]) == expected


def test_images_are_flipped_at_the_requested_rate_and_keep_their_labels(feed: Feed, pixels: np.ndarray) -> None:
    images, rows = gathered(feed.shuffled(1, 0, ALL_FLIPS))
    assert (images == pixels[rows][:, :, ::-1, ::-1]).all()
    images, rows = gathered(feed.shuffled(1, 0, Augment(horizontal_flip=0.5, vertical_flip=0)))
    flipped = (images == pixels[rows][:, :, :, ::-1]).all((1, 2, 3))
    assert ((images == pixels[rows]).all((1, 2, 3)) ^ flipped).all()
    assert 0.2 < flipped.mean() < 0.8


def test_an_epoch_does_not_change_the_shared_images(feed: Feed, pixels: np.ndarray) -> None:
    list(feed.shuffled(1, 0, ALL_FLIPS))
    images, rows = gathered(feed.ordered())
    assert (images == pixels[rows]).all()
