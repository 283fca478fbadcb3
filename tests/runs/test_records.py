from __future__ import annotations

import json
from pathlib import Path

import pytest
from upath import UPath

from ovr_ray.recipe import Config
from ovr_ray.runs import RunFolder, Status, TrialRecord, WinnerRecord, write_winners

OLDER_CONFIG = {"backbone": "resnet18", "lr": 1e-3, "label_smoothing": 0, "focal_gamma": 0.0, "dropout": 0.0}


def test_a_trial_has_a_score_if_it_was_finished_or_stopped_early() -> None:
    assert {status for status in Status if status.is_scored} == {Status.FINISHED, Status.STOPPED}


def test_a_trial_is_lost_if_it_diverged_or_failed() -> None:
    assert {status for status in Status if status.is_lost} == {Status.DIVERGED, Status.FAILED}


def test_the_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It has no ``failures``, and its config has fields that were removed since."""
    trial = RunFolder(UPath(tmp_path)).trial("crack", 3)
    trial.path.mkdir(parents=True)
    older = {"task": "crack", "number": 3, "status": "diverged", "reason": "loss nan", "config": OLDER_CONFIG}
    (trial.path / "trial.json").write_text(json.dumps(older))
    record = trial.record()
    assert (record.task, record.number, record.status, record.reason) == ("crack", 3, Status.DIVERGED, "loss nan")
    assert record.failures == 0
    assert record.config == Config(backbone="resnet18", lr=1e-3)


def test_a_removed_field_that_was_in_use_is_refused() -> None:
    older = {"task": "crack", "number": 3, "status": "finished", "config": OLDER_CONFIG | {"dropout": 0.2}}
    with pytest.raises(ValueError, match="dropout"):
        TrialRecord.from_json(json.dumps(older))


def test_fields_of_a_newer_version_are_ignored() -> None:
    newer = {"task": "crack", "number": 3, "status": "finished", "config": {}, "host": "w2"}
    assert TrialRecord.from_json(json.dumps(newer)).status == Status.FINISHED


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="status"):
        TrialRecord.from_json(json.dumps({"task": "crack", "number": 3, "status": "done", "config": {}}))


def test_a_record_is_read_as_it_was_written() -> None:
    record = TrialRecord(task="crack", number=3, status=Status.FAILED, reason="…", failures=4, config=Config(lr=1e-3))
    assert TrialRecord.from_json(record.to_json()) == record
    assert set(json.loads(record.to_json())) == {"task", "number", "status", "reason", "failures", "config"}


def test_winners_are_read_as_they_were_written_without_fields_that_were_not_given(tmp_path: Path) -> None:
    run = RunFolder(UPath(tmp_path))
    assert run.winners() == {}
    plain = WinnerRecord(
        trial="crack-0001",
        epoch=2,
        threshold=0.4,
        metrics={"val_f1": 0.5},
        config={"image_size": 32},
        checkpoint="trials/crack-0001/checkpoint-0002",
    )
    refitted = plain.model_copy(update={"source": "refit"})
    write_winners(run.joint_model, {"crack": plain, "dust": refitted})
    assert run.winners() == {"crack": plain, "dust": refitted}
    written = json.loads((tmp_path / "winners.json").read_text())
    assert set(written["crack"]) == {"trial", "epoch", "threshold", "metrics", "config", "checkpoint"}
    assert written["dust"]["from"] == "refit"
    assert str(plain) == "crack-0001@2 at 32 pixels"


def test_a_trial_is_written_with_every_field_of_its_config() -> None:
    record = TrialRecord(task="crack", number=0, status=Status.FINISHED, config=Config(lr=0.5))
    written = json.loads(record.to_json())["config"]
    assert written.keys() == Config.model_fields.keys()
    assert TrialRecord.from_json(record.to_json()).config == Config(lr=0.5)
