"""Scores of tasks that have no positive image, or no label at all."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pandas as pd
import pytest

import ovr_ray
from ovr_ray.commands.telling import metrics_table
from ovr_ray.runs import RunFolder


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("label", "images"), [("0", 40), ("", 0)], ids=["no positive image", "no label"])
def test_a_task_without_positives_has_no_f1_and_is_left_out_of_the_average(
    finished: RunFolder, cells: Path, tmp_path: Path, label: str, images: int
) -> None:
    labels = pd.read_csv(cells / "data.csv", sep=";").head(40).assign(inactive=label)
    labels.to_csv(tmp_path / "labels.csv", sep=";", index=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="numpy|sklearn|scipy")
        metrics = ovr_ray.evaluate(finished, str(tmp_path / "labels.csv"), str(cells), str(tmp_path / "m.json"))
    written = json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert written["tasks"]["inactive"]["f1"] is written["tasks"]["inactive"]["average_precision"] is None
    assert written["tasks"]["inactive"]["images"] == images
    assert metrics["average_f1"] == metrics["tasks"]["crack"]["f1"]
    assert metrics["average_precision"] == metrics["tasks"]["crack"]["average_precision"]
    assert "left out of the averages: inactive" in str(metrics_table(metrics).caption)
