from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from ovr_ray.joint import JointMetadata
from ovr_ray.runs import CalibrationRecord, EnsembleRecord, Scores
from tests.support import joint_metadata


def test_metadata_reads_back_the_same() -> None:
    scores = Scores(f1=0.5, average_precision=0.6, brier=0.1)
    calibration = CalibrationRecord(scale=2.0, shift=-1.0)
    ensemble = EnsembleRecord(threshold=0.4, members=["a-0000@1"], calibration=calibration, validation={"one": scores})
    metadata = joint_metadata(["a"]).model_copy(update={"refinement": {"a": ensemble}, "trained_on": ("train", "val")})
    assert JointMetadata.from_json(metadata.to_json()) == metadata


def test_the_file_of_an_older_version_was_trained_on_train_alone_and_is_not_refined() -> None:
    old = {"labels": ["a"], "thresholds": [0.5], "winners": {"a": "a-0000"}, "metrics": {"a": {}}, "recipe": {}}
    metadata = JointMetadata.from_json(json.dumps(old))
    assert metadata.trained_on == ("train",)
    assert metadata.refinement == {}


def test_fields_of_a_newer_version_are_ignored() -> None:
    plain = json.loads(joint_metadata(["a"]).to_json()) | {"invented_later": 1}
    assert JointMetadata.from_json(json.dumps(plain)) == joint_metadata(["a"])


def test_metadata_without_labels_is_an_error() -> None:
    with pytest.raises(ValidationError, match="labels"):
        JointMetadata.from_json("{}")
