from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.model import Confusion
from ovr_ray.runs import RunFolder
from tests.support import copy_run

pytestmark = pytest.mark.usefixtures("without_ray")


def test_the_test_split_is_scored_as_by_hand(finished: RunFolder, cells: Path) -> None:
    metrics = json.loads((finished.path / "metrics.json").read_text())
    split = finished.split()
    test = split.filename[split.part == "test"]
    labels = pd.read_csv(cells / "data.csv", sep=";", index_col="filename").loc[test]
    decided = ovr_ray.predict(finished, [str(cells / name) for name in test])
    assert (metrics["part"], metrics["images"]) == ("test", len(test))
    for task, score in metrics["tasks"].items():
        confusion = Confusion.of(labels[task].to_numpy(), decided[task].to_numpy(bool))
        assert {name: score[name] for name in confusion.counts()} == confusion.counts()
        assert score["mcc"] == pytest.approx(confusion.metrics()["mcc"])
        low, high = score["average_precision_interval"]
        assert low <= score["average_precision"] <= high
    assert metrics["average_f1"] == pytest.approx(np.mean([score["f1"] for score in metrics["tasks"].values()]))


def test_every_answer_that_the_metrics_are_computed_from_is_in_predictions_csv(finished: RunFolder) -> None:
    answers = pd.read_csv((finished.path / "predictions.csv").open(), sep=";")
    split = finished.split()
    unseen = split[split.part != "train"]
    assert answers.filename.tolist() == unseen.filename.tolist()
    assert answers.part.tolist() == unseen.part.tolist()
    metrics = json.loads((finished.path / "metrics.json").read_text())
    for scores, part in ((metrics["tasks"], "test"), (metrics["validation"], "val")):
        scored = answers[answers.part == part]
        for task, score in scores.items():
            decided = scored[f"{task}_probability"].to_numpy(np.float32) >= np.float32(score["threshold"])
            counts = Confusion.of(scored[task].to_numpy(), decided).counts()
            assert {name: score[name] for name in counts} == counts


def test_other_labels_are_scored_where_they_are_known(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(cells / "data.csv", sep=";").head(20)
    labels["inactive"] = [""] * 5 + labels.inactive[5:].astype(str).tolist()
    labels.to_csv(tmp_path / "more.csv", sep=";", index=False)
    output = str(tmp_path / "metrics.json")
    metrics = ovr_ray.evaluate(finished, str(tmp_path / "more.csv"), str(cells), output)
    assert metrics["part"] == "all"
    assert metrics["tasks"]["crack"]["images"] == 20
    assert metrics["tasks"]["inactive"]["images"] == 15
    assert json.loads(Path(output).read_text())["images"] == 20
    assert metrics["file"] == output


def test_images_that_cannot_be_decoded_are_an_error_that_names_them(
    finished: RunFolder, cells: Path, tmp_path: Path
) -> None:
    labels = pd.read_csv(cells / "data.csv", sep=";").head(4)
    labels.to_csv(tmp_path / "data.csv", sep=";", index=False)
    (tmp_path / "images").mkdir()
    for name in labels.filename:
        shutil.copy(cells / name, tmp_path / name)
    (tmp_path / labels.filename[2]).write_text("not an image")
    output = tmp_path / "metrics.json"
    with pytest.raises(BadInput) as caught:
        ovr_ray.evaluate(finished, str(tmp_path / "data.csv"), output=str(output))
    assert "data.images: 1 images cannot be decoded" in str(caught.value)
    assert f"{labels.filename[2]}: not an image" in str(caught.value)
    assert not output.exists()


def test_a_model_outside_of_a_run_has_no_test_split(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copy(str(finished.joint_model), tmp_path / "joint.pt")
    with pytest.raises(BadInput, match="lies in no run folder, so there is no test split\n    -> give --labels CSV"):
        ovr_ray.evaluate(tmp_path / "joint.pt")


def test_without_a_test_split_a_run_is_scored_on_validation_and_the_report_says_so(
    finished: RunFolder, tmp_path: Path
) -> None:
    run = copy_run(finished, tmp_path)
    split = run.split()
    split[split.part != "test"].to_csv(run.path / "split.csv", sep=";", index=False)
    metrics = ovr_ray.evaluate(run)
    assert (metrics["part"], metrics["images"]) == ("val", 16)
    assert metrics["tasks"] == metrics["validation"]
    ovr_ray.report(run)
    assert "<th>validation F1</th>" in run.report.read_text()


def test_a_run_of_which_every_image_was_trained_on_cannot_be_scored(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    run.split().assign(part="train").to_csv(run.path / "split.csv", sep=";", index=False)
    with pytest.raises(BadInput, match="no test images, and the model was trained on all others"):
        ovr_ray.evaluate(run)


def in_commas(cells: Path, folder: Path, *columns: str) -> str:
    """Write the first 20 labels, separated by commas, with these columns only; return the path."""
    table = pd.read_csv(cells / "data.csv", sep=";").head(20)[["filename", *columns]]
    table.to_csv(folder / "commas.csv", index=False)
    return str(folder / "commas.csv")


def test_labels_with_another_separator_and_of_fewer_tasks_are_scored(
    finished: RunFolder, cells: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "m.json")
    labels = in_commas(cells, tmp_path, "crack")
    metrics = ovr_ray.evaluate(finished, labels, str(cells), output, ["crack"], ",")
    assert list(metrics["tasks"]) == list(json.loads(Path(output).read_text())["tasks"]) == ["crack"]
    assert metrics["average_f1"] == metrics["tasks"]["crack"]["f1"]
    assert metrics["average_precision"] == metrics["tasks"]["crack"]["average_precision"]
    every = ovr_ray.evaluate(finished, in_commas(cells, tmp_path, "inactive", "crack"), str(cells), output, (), ",")
    assert every["tasks"]["crack"] == metrics["tasks"]["crack"]
    tabs = tmp_path / "tabs.txt"
    pd.read_csv(labels).to_csv(tabs, sep="\t", index=False)
    assert ovr_ray.evaluate(finished, str(tabs), str(cells), output, ["crack"], r"\t")["images"] == 20


@pytest.mark.parametrize(
    ("columns", "tasks", "separator", "message"),
    [
        (["crack"], [], ",", r"has no column 'inactive'; .*\n    -> score the others: --task crack$"),
        (["crack"], [], None, r"has no columns that are separated by ';'\n    -> .* --separator ','$"),
        (["crack"], ["crak"], ",", r"--task 'crak': the model has no such task\n    -> tasks: crack, inactive"),
        (["crack"], ["crack"], ", ", "--separator ', ': is not one character"),
    ],
)
def test_a_label_file_that_is_unlike_the_runs_is_told_with_the_option_for_it(
    columns: list[str],
    tasks: list[str],
    separator: str | None,
    message: str,
    finished: RunFolder,
    cells: Path,
    tmp_path: Path,
) -> None:
    labels = in_commas(cells, tmp_path, *columns)
    with pytest.raises(BadInput, match=message):
        ovr_ray.evaluate(finished, labels, str(cells), str(tmp_path / "m.json"), tasks, separator)


def test_a_wrong_separator_is_told_also_where_it_occurs_in_a_row(
    finished: RunFolder, cells: Path, tmp_path: Path
) -> None:
    labels = in_commas(cells, tmp_path, "crack")
    Path(labels).write_text(Path(labels).read_text() + "a;b;c.png,1\n")
    with pytest.raises(BadInput, match="for example --separator ','"):
        ovr_ray.evaluate(finished, labels, str(cells), str(tmp_path / "m.json"))


def test_options_for_other_labels_are_refused_without_them(finished: RunFolder) -> None:
    with pytest.raises(BadInput, match="--task: is for other labels than the run's own\n    -> give --labels CSV"):
        ovr_ray.evaluate(finished, tasks=["crack"])
    with pytest.raises(BadInput, match="--separator: is for other labels"):
        ovr_ray.evaluate(finished, separator=",")


def test_files_are_named_after_the_output_and_those_of_somebody_else_are_kept(
    finished: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "predictions.csv").write_text("precious")
    ovr_ray.evaluate(finished, output=str(tmp_path / "m.json"))
    ovr_ray.evaluate(finished, output=str(tmp_path / "m.json"))  # its own files are replaced
    assert {file.name for file in tmp_path.iterdir()} == {"m.json", "m.predictions.csv", "predictions.csv"}
    assert (tmp_path / "predictions.csv").read_text() == "precious"
    with pytest.raises(BadInput, match=r"predictions\.csv: is there already, and is no file of predictions"):
        ovr_ray.evaluate(finished, output=str(tmp_path / "metrics.json"))
    assert not (tmp_path / "metrics.json").exists()


def test_a_model_of_another_name_has_metrics_of_its_name(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    before = (run.path / "metrics.json").read_text()
    shutil.copy(str(run.joint_model), str(run.path / "x.pt"))
    assert ovr_ray.evaluate(str(run.path / "x.pt"))["file"] == str(run.path / "x.metrics.json")
    assert (run.path / "x.predictions.csv").read_text() == (run.path / "predictions.csv").read_text()
    assert (run.path / "metrics.json").read_text() == before


def test_the_test_split_is_scored_where_its_images_are_now(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(cells, moved)
    gone = tmp_path / "gone"
    shutil.copytree(cells, gone)
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(cells), str(gone)))
    ovr_ray.combine(run)
    before = ovr_ray.evaluate(run)
    shutil.rmtree(gone)
    with pytest.raises(BadInput, match=f"{gone}: holds none of the run's [\\s\\S]*--images DIR"):
        ovr_ray.evaluate(run)
    assert ovr_ray.evaluate(run, images=str(moved))["tasks"] == before["tasks"]
