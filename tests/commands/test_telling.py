from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
from rich.console import Console, RenderableType
from upath import UPath

from ovr_ray.commands import telling
from ovr_ray.commands.telling import answers_table, metrics_table, refinement_table
from ovr_ray.images import LabelTable
from ovr_ray.joint import ModelFiles
from ovr_ray.results import Parts
from ovr_ray.runs import EnsembleRecord, Scores
from tests.support import joint_metadata

STEPS = {
    "best checkpoint": Scores(f1=0.5, average_precision=0.612, brier=0.2),
    "platt": Scores(f1=0.625, average_precision=0.612, brier=0.1),
}


def shown(table: RenderableType, width: int = 160) -> str:
    """Return what a terminal of this width shows."""
    console = Console(file=io.StringIO(), record=True, width=width)
    console.print(table)
    return console.export_text()


def sentence(text: str) -> str:
    """Return a text in one line: a table breaks its caption at its own width."""
    return " ".join(text.split())


def metrics_of(split: str) -> Mapping[str, Any]:
    """Return the metrics of one task on a split."""
    score = {
        "positives": 4,
        "images": 16,
        "prevalence": 0.25,
        "f1": 0.5,
        "f1_interval": (0.25, 0.75),
        "average_precision": 0.625,
        "average_precision_interval": (0.5, 0.875),
    }
    averages = {"average_f1": 0.5, "average_precision": 0.625}
    return {"part": split, "images": 16, "tasks": {"crack": score}, "file": "/runs/tiny/metrics.json", **averages}


def answers(names: list[str], probabilities: Mapping[str, float], error: str = "") -> pd.DataFrame:
    """Return the same predictions for these images; the answer is yes from 0.5 on."""
    decided = {label: int(probability >= 0.5) for label, probability in probabilities.items()}
    probable = {f"{label}_probability": probability for label, probability in probabilities.items()}
    return pd.DataFrame([{"filename": name, "error": error, **decided, **probable} for name in names])


def test_metrics_are_a_row_per_task_with_intervals() -> None:
    text = shown(metrics_table(metrics_of("test")))
    assert "16 images, test split" in text
    assert ["crack", "4/16", "(25%)", "0.500", "[0.250,", "0.750]", "0.625", "[0.500,", "0.875]"] in [
        line.split() for line in text.splitlines()
    ]
    assert ["average", "0.500", "0.625"] in [line.split() for line in text.splitlines()]
    assert "95 % bootstrap intervals" in sentence(text)
    assert "no test split" not in sentence(text)


def test_metrics_on_validation_say_that_they_flatter() -> None:
    text = sentence(shown(metrics_table(metrics_of("val"))))
    assert "16 images, val split" in text
    assert "there is no test split: these images chose the winners and their thresholds, which flatters" in text


def test_metrics_on_other_labels_name_no_split() -> None:
    text = sentence(shown(metrics_table(metrics_of("all"))))
    assert text.startswith("16 images task positives")
    assert "split" not in text


def test_a_task_without_a_positive_image_has_dashes_and_is_named() -> None:
    none = dict.fromkeys(("f1", "f1_interval", "average_precision", "average_precision_interval"))
    metrics = metrics_of("test")
    scores = metrics["tasks"] | {"inactive": metrics["tasks"]["crack"] | none | {"positives": 0, "prevalence": 0.0}}
    text = shown(metrics_table({**metrics, "tasks": scores}))
    assert ["inactive", "0/16", "(0%)", "–", "–"] in [line.split() for line in text.splitlines()]
    assert "no positive image, and so left out of the averages: inactive" in sentence(text)


def test_metrics_are_printed_with_the_file_that_they_are_in(capsys: pytest.CaptureFixture[str]) -> None:
    telling.print_metrics(metrics_of("test"))
    assert capsys.readouterr().out.endswith("\n/runs/tiny/metrics.json\n")


def test_refinement_is_a_row_per_step() -> None:
    table = refinement_table({"crack": STEPS}, "on validation")
    assert table.row_count == 2
    lines = [line.split() for line in shown(table).splitlines()]
    assert ["crack", "best", "checkpoint", "0.500", "0.612", "0.200"] in lines
    assert ["platt", "0.625", "0.612", "0.100"] in lines
    assert "on validation, where thresholds and calibration were fitted" in sentence(shown(table))


def test_winners_are_printed_with_their_scores_and_refinements(capsys: pytest.CaptureFixture[str]) -> None:
    metadata = joint_metadata(["crack", "inactive"], [0.25, 0.5])
    refined = EnsembleRecord(threshold=0.25, validation=STEPS)
    telling.print_winners(metadata.model_copy(update={"refinement": {"crack": refined}}))
    printed = capsys.readouterr().out
    assert printed.startswith("crack: crack-0000, epoch 1, validation F1 0.500 at threshold 0.250\ninactive: ")
    assert "platt" in printed
    telling.print_winners(metadata)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_scores_of_a_refit_are_those_out_of_fold(capsys: pytest.CaptureFixture[str]) -> None:
    metadata = joint_metadata(["crack"])
    refined = EnsembleRecord(threshold=0.5, out_of_fold=STEPS)
    changes = {"metrics": {"crack": {"out_of_fold_f1": 0.75}}, "refinement": {"crack": refined}}
    telling.print_winners(metadata.model_copy(update=changes))
    printed = capsys.readouterr().out
    assert "out-of-fold F1 0.750 at threshold 0.500" in printed
    assert "out of fold, where thresholds" in sentence(printed)


def test_a_few_labels_have_a_column_each() -> None:
    text = shown(answers_table(answers(["a.png"], {"crack": 0.81, "inactive": 0.1}), ["crack", "inactive"]))
    lines = [line.split() for line in text.splitlines()]
    assert ["image", "crack", "inactive"] in lines
    assert ["a.png", "yes", "0.810", "no", "0.100"] in lines


def test_of_many_labels_a_terminal_shows_those_whose_answer_is_yes() -> None:
    labels = [f"label-{number}" for number in range(20)]
    probabilities = dict.fromkeys(labels, 0.1) | {"label-3": 0.81, "label-17": 0.93}
    text = shown(answers_table(answers(["a.png"], probabilities), labels), width=80)
    assert "label-17 0.930, label-3 0.810" in text
    assert "label-4" not in text


def test_an_unreadable_image_is_a_row_with_the_reason() -> None:
    table = answers_table(answers(["[bold]a.png"], {"crack": 0.0}, error="not an image"), ["crack"])
    assert table.row_count == 1
    assert "[bold]a.png: not an image" in shown(table)


def test_answers_are_a_table_on_a_terminal_and_csv_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = answers(["a.png"], {"crack": 0.8125})
    telling.print_answers(table, ["crack"])
    assert capsys.readouterr().out == "filename;error;crack;crack_probability\na.png;;1;0.812500\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    telling.print_answers(table, ["crack"])
    assert "yes 0.812" in capsys.readouterr().out


def test_counts_are_printed_per_task_and_split_with_the_images_that_do_not_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = pd.Series(["a.png", "b.png", "c.png", "d.png"])
    labels = pd.DataFrame({"crack": [1.0, 0.0, 1.0, None], "inactive": [0.0, None, 1.0, None]}, dtype="float32")
    telling.print_counts("recipe.yaml", LabelTable(files, labels, pd.Series(["train", "train", "val", "val"])))
    printed = capsys.readouterr().out
    assert "recipe.yaml: 4 images, no fault" in printed
    assert "1 of 2" in printed
    assert "0 of 1" in printed
    assert printed.splitlines()[-1] == "1 images count for no task (no label, or undecodable): d.png"


def test_parts_are_printed_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    folder = UPath("/out")
    telling.print_parts(Parts(folder, [folder / "part-00000.csv"], images=30, unreadable=2, already=50))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "2 of 30 images could not be read; column 'error' says why\n/out: 30 images, 50 more were there, in 1 parts\n"
    )


def test_nothing_is_printed_about_unreadable_images_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    telling.print_unreadable(0, 30)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "on_cpu", "are_many", "told"),
    [
        ("r/joint.pt", "r/joint.onnx", False, "on CPUs, r/joint.onnx answers, by ONNX Runtime\n"),
        ("r/joint.pt", "r/joint.pt", False, ""),
        ("r/joint.pt", "r/joint.pt", True, "on CPUs, joint.onnx would be faster: ovr-ray combine RUN --format onnx\n"),
        ("r/joint.onnx", "r/joint.onnx", True, ""),
    ],
)
def test_it_is_told_which_file_answers(
    file: str, on_cpu: str, are_many: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    telling.print_engine(ModelFiles(file, on_cpu, "digest"), are_many)
    assert capsys.readouterr().err == told
