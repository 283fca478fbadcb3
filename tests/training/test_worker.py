from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from upath import UPath

from ovr_ray.images import ImageSet, read_labels
from ovr_ray.images.shards import Shard, shards
from ovr_ray.recipe import Recipe
from ovr_ray.runs import TrialFolder
from ovr_ray.training import Assignment, Cause, EarlyEnd, EpochRow, Session, Team, train, worker
from ovr_ray.training.worker import in_micro_batches
from tests.support import assignment

BATCH = 16


class Gpu:
    """Stands for a GPU whose memory suffices for a number of images; the test machine has none."""

    def __init__(self, images: int) -> None:
        self.images, self.asked = images, list[int]()

    def train(self, micro_batches: int) -> EarlyEnd | None:
        self.asked.append(micro_batches)
        if BATCH / micro_batches <= self.images:
            return None
        return EarlyEnd(Cause.OUT_OF_MEMORY, f"in {micro_batches} micro-batches")


@pytest.mark.parametrize(("images", "asked"), [(16, [1]), (8, [1, 2]), (5, [1, 2, 4]), (2, [1, 2, 4, 8])])
def test_a_batch_too_large_for_the_memory_is_trained_in_micro_batches(images: int, asked: list[int]) -> None:
    gpu = Gpu(images)
    assert in_micro_batches(gpu.train, BATCH) is None
    assert gpu.asked == asked


def test_a_network_too_large_for_two_images_ends_training() -> None:
    gpu = Gpu(images=1)
    assert in_micro_batches(gpu.train, BATCH) == EarlyEnd(Cause.OUT_OF_MEMORY, "in 8 micro-batches")
    assert gpu.asked == [1, 2, 4, 8]


def test_micro_batches_begin_with_the_number_that_is_known_to_fit() -> None:
    gpu = Gpu(images=3)
    assert in_micro_batches(gpu.train, BATCH, first=4) is None
    assert in_micro_batches(gpu.train, 2, first=4) is not None  # of two images there is one micro-batch
    assert gpu.asked == [4, 8, 1]


def test_another_cause_ends_training_at_once() -> None:
    asked = []

    def diverge(micro_batches: int) -> EarlyEnd:
        asked.append(micro_batches)
        return EarlyEnd(Cause.DIVERGED, "nan")

    assert in_micro_batches(diverge, BATCH) == EarlyEnd(Cause.DIVERGED, "nan")
    assert asked == [1]


@pytest.fixture
def images(make_recipe: Callable[..., Recipe], tmp_path: Path) -> ImageSet:
    """Return the decoded cells, streamed from storage, which needs no Ray."""
    recipe = make_recipe()
    all_shards = shards(read_labels(recipe.data, recipe.tasks), recipe.data, str(tmp_path))
    return ImageSet(all_shards, pd.concat(map(Shard.facts, all_shards)).set_index("row").sort_index())


@pytest.fixture
def given(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Assignment]:
    """Return a function that returns what a trial trains on the cells: ``given(epochs=2, lr=1e-3)``."""
    recipe = make_recipe()
    table = read_labels(recipe.data, recipe.tasks)
    (tmp_path / "crack-0000").mkdir()
    folder = TrialFolder(UPath(tmp_path / "crack-0000"))
    train_labels, val_labels = table.labels_of("crack", "train"), table.labels_of("crack", "val")
    return lambda **options: replace(assignment(folder, **options), train_labels=train_labels, val_labels=val_labels)


def test_every_epoch_is_reported_after_it_is_saved_and_the_end_comes_last(
    images: ImageSet, given: Callable[..., Assignment]
) -> None:
    todo, seen = given(epochs=2), list[Any]()

    def on_epoch(row: EpochRow) -> None:
        saved = todo.folder.epochs()
        assert saved.train_loss.iloc[-1] == pytest.approx(row["train_loss"])
        seen.append(row["epoch"])

    def on_end(session: Session) -> None:
        seen.append(f"end after epoch {session.trainer.epoch}")

    assert train(todo, images, cpus=1, gpus=0, on_epoch=on_epoch, on_end=on_end) is None
    assert seen == [1, 2, "end after epoch 2"]
    counts = todo.folder.epochs()[[f"train_{name}" for name in ("tn", "fp", "fn", "tp")]].sum(axis=1)
    assert (counts == np.isfinite(todo.train_labels).sum()).all()


def test_a_resumed_trial_first_reports_the_epoch_that_it_resumes_from(
    images: ImageSet, given: Callable[..., Assignment]
) -> None:
    first, todo = given(epochs=3, precision="bf16"), given(epochs=3, precision="bf16")
    seen: list[EpochRow] = []
    train(replace(first, epochs=2), images, cpus=1, gpus=0)
    assert train(todo, images, cpus=1, gpus=0, on_epoch=seen.append) is None
    assert [row["epoch"] for row in seen] == [2, 3]
    assert [(row["device"], row["parts"], row["precision"]) for row in seen] == [("cpu", 1, "bf16")] * 2
    assert todo.folder.epochs().precision.tolist() == ["bf16"] * 3
    seen.clear()
    assert train(todo, images, cpus=1, gpus=0, on_epoch=seen.append) is None
    assert [row["epoch"] for row in seen] == [3]


def test_divergence_ends_training_with_its_reason(images: ImageSet, given: Callable[..., Assignment]) -> None:
    end = train(given(lr=1e38, optimizer="sgd", schedule="constant"), images, cpus=1, gpus=0)
    assert end
    assert end.cause == Cause.DIVERGED
    assert "the training loss became" in end.reason


def test_a_full_disk_ends_training_with_its_file(
    images: ImageSet, given: Callable[..., Assignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: TrialFolder, rows: list[dict[str, Any]]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder.path / "epochs.csv"))

    monkeypatch.setattr(TrialFolder, "write_epochs", full)
    end = train(given(), images, cpus=1, gpus=0)
    assert end
    assert end.cause == Cause.UNWRITABLE
    assert end.reason.endswith("crack-0000/epochs.csv: No space left on device")


def test_a_lack_of_memory_ends_training_with_the_config_only_when_micro_batches_do_not_help(
    images: ImageSet, given: Callable[..., Assignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    todo, tried = given(), list[int]()

    def too_large(session: Session, row: EpochRow) -> None:
        tried.append(session.trainer.micro_batches)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Session, "save", too_large)
    end = train(todo, images, cpus=1, gpus=0)
    assert tried == [1, 2, 4, 8]
    assert end
    assert end.cause == Cause.OUT_OF_MEMORY
    assert end.reason.startswith("out of memory on cpu with batches in 8 micro-batches: {'backbone': 'shufflenet")


def test_a_team_whose_memory_runs_out_fails_and_its_next_try_has_twice_the_micro_batches(
    images: ImageSet, given: Callable[..., Assignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    todo, tried = given(), list[int]()

    def too_large(given: Assignment, device: torch.device, micro_batches: int, workers: int, leads: bool) -> Session:
        tried.append(micro_batches)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker, "Session", too_large)
    for _ in range(4):
        with pytest.raises(torch.OutOfMemoryError):
            train(todo, images, cpus=1, gpus=0, team=Team(size=2, rank=1))
    assert tried == [1, 2, 4, 4]  # each of two workers has eight images of a batch, and a micro-batch has two or more


def test_a_team_that_fails_otherwise_tries_again_as_before(
    images: ImageSet, given: Callable[..., Assignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Session:
        raise RuntimeError("Connection closed by peer")

    todo = given()
    monkeypatch.setattr(worker, "Session", broken)
    with pytest.raises(RuntimeError, match="Connection closed"):
        train(todo, images, cpus=1, gpus=0, team=Team(size=2, rank=0))
    assert todo.folder.parts() == 1


def test_another_error_is_raised(
    images: ImageSet, given: Callable[..., Assignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: Session, row: EpochRow) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(Session, "save", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(given(), images, cpus=1, gpus=0)
