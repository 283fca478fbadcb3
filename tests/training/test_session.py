from __future__ import annotations

import errno
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from upath import UPath

from ovr_ray.model import read_card
from ovr_ray.recipe import Checkpoints
from ovr_ray.runs import TrialFolder
from ovr_ray.training import Session, Unwritable, derived_seed, storage_is_writable
from tests.support import EVERY_OPTION, IMAGES, assignment, batches, pretend_cpu

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return made(tmp_path / "crack-0000")


def made(path: Path) -> TrialFolder:
    """Return a trial's folder, as a search makes it before the trial starts."""
    path.mkdir()
    return TrialFolder(UPath(path))


def train(session: Session, epochs: int, **more: Any) -> None:
    """Train this many epochs at most, and save each with more columns."""
    for row in islice(session.trainer.epochs(batches, lambda: batches(99), IMAGES), epochs):
        session.save(row | more)


def test_a_trial_whose_weights_are_averaged_resumes_from_its_folder_as_if_never_interrupted(tmp_path: Path) -> None:
    undisturbed, interrupted = (
        assignment(made(tmp_path / name), **EVERY_OPTION) for name in ("undisturbed", "interrupted")
    )
    train(Session(undisturbed, CPU), 4)
    train(Session(interrupted, CPU), 2)
    torch.manual_seed(1234)  # a new process draws other numbers
    again = Session(interrupted, CPU)
    assert again.restored
    assert again.restored["epoch"] == 2
    train(again, 4)
    expected, found = undisturbed.folder.epochs(), interrupted.folder.epochs()
    assert found.epoch.tolist() == [1, 2, 3, 4]
    for metric in ("train_loss", "val_loss", "threshold", "lr"):
        assert found[metric].tolist() == pytest.approx(expected[metric].tolist(), abs=1e-6)


def test_epochs_after_the_last_checkpoint_are_trained_again(folder: TrialFolder) -> None:
    given = assignment(folder, checkpoints=Checkpoints(every=2))
    train(Session(given, CPU), 3)
    assert folder.epochs().epoch.tolist() == [1, 2, 3]
    again = Session(given, CPU)
    assert again.trainer.epoch == 2
    assert folder.epochs().epoch.tolist() == [1, 2]


def test_an_incomplete_checkpoint_is_not_resumed_from(folder: TrialFolder) -> None:
    given = assignment(folder)
    train(Session(given, CPU), 1)
    folder.checkpoint(2).mkdir()
    (folder.checkpoint(2) / "weights.pt").write_bytes(b"half of the weights")
    assert Session(given, CPU).trainer.epoch == 1


def test_a_resumed_trial_needs_at_least_as_many_micro_batches_as_before(folder: TrialFolder) -> None:
    given = assignment(folder)
    train(Session(given, CPU, micro_batches=4), 1, parts=4)
    assert [Session(given, CPU, micro_batches=count).trainer.micro_batches for count in (1, 8)] == [4, 8]


@pytest.mark.parametrize(("began_in", "has_bf16"), [("bf16", False), ("fp32", True)])
def test_a_resumed_trial_goes_on_in_the_precision_it_began_with(
    began_in: str, has_bf16: bool, folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cpu(monkeypatch, avx512_bf16=not has_bf16)
    first = Session(assignment(folder), CPU)
    assert first.trainer.precision == began_in
    train(first, 1, precision=first.trainer.precision)
    pretend_cpu(monkeypatch, avx512_bf16=has_bf16)
    again = Session(assignment(folder), CPU)
    assert (again.trainer.epoch, again.trainer.precision) == (1, began_in)
    asked_for = Session(assignment(folder, precision="tf32"), CPU)
    assert (asked_for.trainer.epoch, asked_for.trainer.precision) == (1, "tf32")
    card = read_card(folder.checkpoint(1))
    assert card
    assert card.config["precision"] == "auto"


@pytest.mark.parametrize("has_bf16", [False, True])
def test_an_older_checkpoint_goes_on_in_what_auto_means_now(
    has_bf16: bool, folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(Session(assignment(folder), CPU), 1)
    pretend_cpu(monkeypatch, avx512_bf16=has_bf16)
    again = Session(assignment(folder), CPU)
    now = "bf16" if has_bf16 else "fp32"
    assert (again.trainer.epoch, again.trainer.precision) == (1, now)
    train(again, 1, precision=now)
    assert folder.epochs().precision.fillna("unknown").tolist() == ["unknown", now]


def test_the_best_and_the_latest_checkpoint_are_kept_and_only_the_latest_can_be_resumed(folder: TrialFolder) -> None:
    given = replace(assignment(folder), score_column="score")
    session = Session(given, CPU)
    for score in (0.2, 0.9, 0.5, 0.3):
        train(session, 1, score=score)
    kept = {path.name: sorted(files) for path, files in folder.checkpoints().items()}
    assert kept == {
        "checkpoint-0002": ["sub_model.json", "weights.pt"],
        "checkpoint-0004": ["sub_model.json", "training.pt", "weights.pt"],
    }


def test_without_the_latest_checkpoint_a_trial_starts_again_instead_of_failing(folder: TrialFolder) -> None:
    train(Session(assignment(folder), torch.device("cpu")), 3)
    latest = folder.checkpoint(3)
    for file in latest.iterdir():
        file.unlink()
    latest.rmdir()
    assert folder.checkpoints()  # the best one is left, without the state that training resumes from
    again = Session(assignment(folder), torch.device("cpu"))
    assert again.restored is None
    assert again.trainer.epoch == 0


def test_the_last_epoch_and_epochs_of_a_high_f1_are_saved_whatever_the_interval(tmp_path: Path) -> None:
    saved = {}
    for name, above_f1 in (("rarely", None), ("above", 0.0)):
        given = assignment(made(tmp_path / name), 3, Checkpoints(every=100, above_f1=above_f1, keep=9))
        train(Session(given, CPU), 3)
        saved[name] = [path.name[-4:] for path in given.folder.checkpoints()]
    assert saved == {"rarely": ["0003"], "above": ["0001", "0002", "0003"]}


def test_a_checkpoint_has_the_threshold_that_the_tasks_goal_asks_for(folder: TrialFolder) -> None:
    given = replace(assignment(folder), goal=0.25)
    train(Session(given, CPU), 1)
    card = read_card(folder.checkpoint(1))
    assert card
    assert card.threshold == 0.25
    assert (card.task, card.epoch, card.image_size, card.stored_size) == ("crack", 1, 32, 32)


def test_a_process_that_does_not_lead_writes_nothing(folder: TrialFolder) -> None:
    train(Session(assignment(folder), CPU, leads=False), 1)
    assert list(folder.path.iterdir()) == []


def test_a_balanced_loss_weighs_positives_by_the_labels_that_are_trained_on(folder: TrialFolder) -> None:
    labels = np.array([0, 0, 0, 1, np.nan, np.nan], np.float32)
    assert replace(assignment(folder), train_labels=labels).pos_weight == 3.0
    assert replace(assignment(folder, pos_weight=1.5), train_labels=labels).pos_weight == 1.5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_locked_disk_is_reported_with_its_file(number: int, folder: TrialFolder) -> None:
    with pytest.raises(Unwritable, match=r"/runs/epochs\.csv: "), storage_is_writable(folder):
        raise OSError(number, "no room", "/runs/epochs.csv")


def test_another_error_of_storage_is_left_as_it_is(folder: TrialFolder) -> None:
    with pytest.raises(ConnectionResetError), storage_is_writable(folder):
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")


def test_a_seed_differs_by_name_and_number_and_is_the_same_everywhere() -> None:
    seeds = [derived_seed(0, "crack", 0), derived_seed(0, "crack", 1), derived_seed(0, "dust", 0)]
    assert len({*seeds, derived_seed(1, "crack", 0)}) == 4
    assert seeds[0] == 2449517615  # as in older versions: a resumed search makes the same draws
