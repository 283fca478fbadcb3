from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.images import read_image
from ovr_ray.joint import load_torchscript
from ovr_ray.model import Confusion
from ovr_ray.results import answers_of
from ovr_ray.results.evaluate import table_of
from ovr_ray.runs import RunFolder
from tests.support import copy_run


def test_predictions_are_those_of_the_joint_model_on_the_files(finished: RunFolder, cells: Path) -> None:
    table = ovr_ray.predict(finished, [str(cells / "images")])
    assert len(table) == 80
    assert list(table) == ["filename", "crack_probability", "crack", "inactive_probability", "inactive", "error"]
    joint, _ = load_torchscript((finished.path / "joint.pt").read_bytes())
    files = [read_image(name, "gray") for name in table.filename]
    expected = joint(torch.from_numpy(np.stack(files))).detach().numpy()
    assert np.allclose(table[["crack_probability", "inactive_probability"]], expected, atol=1e-4)
    assert table.crack.tolist() == (expected[:, 0] >= joint.thresholds[0].item()).astype(int).tolist()


def test_a_bad_image_is_a_row_with_its_error(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    shutil.copy(cells / "images/cell01.png", tmp_path / "good one.png")
    (tmp_path / "bad.png").write_text("not an image")
    table = ovr_ray.predict(finished, [str(tmp_path)]).set_index("filename")
    assert table.loc[str(tmp_path / "bad.png"), "error"].startswith("not an image")
    assert pd.isna(table.loc[str(tmp_path / "bad.png"), "crack"])
    assert table.loc[str(tmp_path / "good one.png"), "error"] == ""


def test_nothing_to_predict_is_told(finished: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        ovr_ray.predict(finished, [str(tmp_path), "nowhere.png"])
    assert "no image in this folder" in str(caught.value)
    assert "nowhere.png: no such file" in str(caught.value)


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such model"):
        ovr_ray.predict(tmp_path / "joint.pt", ["."])


def test_the_test_part_is_scored_as_by_hand(finished: RunFolder, cells: Path) -> None:
    metrics = json.loads((finished.path / "metrics.json").read_text())
    split = finished.split()
    test = split.filename[split.part == "test"]
    labels = pd.read_csv(cells / "data.csv", sep=";", index_col="filename").loc[test]
    decided = ovr_ray.predict(finished, [str(cells / name) for name in test])
    for task, score in metrics["tasks"].items():
        confusion = Confusion.of(labels[task].to_numpy(), decided[task].to_numpy(bool))
        assert {name: score[name] for name in confusion.counts()} == confusion.counts()
        assert score["mcc"] == pytest.approx(confusion.metrics()["mcc"])
        low, high = score["average_precision_interval"]
        assert low <= score["average_precision"] <= high
    assert metrics["average_f1"] == pytest.approx(np.mean([score["f1"] for score in metrics["tasks"].values()]))


def test_other_labels_are_scored_too(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(cells / "data.csv", sep=";").head(20)
    labels["inactive"] = [""] * 5 + labels.inactive[5:].astype(str).tolist()
    labels.to_csv(tmp_path / "more.csv", sep=";", index=False)
    output = str(tmp_path / "metrics.json")
    metrics = ovr_ray.evaluate(finished, str(tmp_path / "more.csv"), str(cells), output)
    assert metrics["tasks"]["crack"]["images"] == 20
    assert metrics["tasks"]["inactive"]["images"] == 15
    assert json.loads(Path(output).read_text())["images"] == 20


def test_a_model_outside_of_a_run_has_no_test_part(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copy(str((finished.path / "joint.pt")), tmp_path / "joint.pt")
    with pytest.raises(BadInput, match="no test part to evaluate on"):
        ovr_ray.evaluate(tmp_path / "joint.pt")


def test_a_few_images_start_no_cluster_and_get_the_answers_that_a_cluster_gives(
    finished: RunFolder, cells: Path, tmp_path: Path
) -> None:
    picture = str(cells / "images" / "cell00.png")
    code = """
import sys, ray, ovr_ray
table = ovr_ray.predict(sys.argv[1], sys.argv[2:])
print(ray.is_initialized(), table.to_json())
"""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code, str(finished.path), picture]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    started, _, answer = told.partition(" ")
    by_workers = ovr_ray.predict(str(finished.path), [picture])
    assert started == "False"
    assert json.loads(answer)["crack_probability"]["0"] == pytest.approx(by_workers.crack_probability[0], abs=1e-5)
    assert answers_of(by_workers, ["crack", "inactive"]).row_count == 1


def test_without_a_test_part_a_run_is_scored_on_validation_and_says_so(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    split = run.split()
    split[split.part != "test"].to_csv((run.path / "split.csv"), sep=";", index=False)
    result = ovr_ray.evaluate(run)
    assert (result["part"], result["images"]) == ("val", 16)
    console = Console(record=True, width=200)
    console.print(table_of(result))
    assert "16 images, val part" in (told := console.export_text())
    assert "no test part" in told
    ovr_ray.report(run)
    assert "<th>val F1</th>" in (run.path / "report.html").read_text()


def test_of_many_labels_a_terminal_shows_those_that_are_there() -> None:
    labels = [f"label-{number}" for number in range(20)]
    yes = {"label-3": 0.81, "label-17": 0.93}
    answered = {label: label in yes for label in labels}
    sure = {f"{label}_probability": yes.get(label, 0.1) for label in labels}
    console = Console(record=True, width=80)
    console.print(answers_of(pd.DataFrame([{"filename": "a.png", "error": "", **answered, **sure}]), labels))
    shown = console.export_text()
    assert "label-17 0.930, label-3 0.810" in shown
    assert "label-4" not in shown
