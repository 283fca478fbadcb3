from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.runs import (
    Kind,
    RunFolder,
    metrics_beside,
    predictions_beside,
    refuse_foreign,
    winners_beside,
)

KINDS: tuple[Kind, ...] = ("model", "winners", "metrics", "predictions", "picture", "report")


@pytest.mark.parametrize(
    ("model", "winners", "metrics", "predictions"),
    [
        ("joint.pt", "winners.json", "metrics.json", "predictions.csv"),
        ("x.pt", "x.winners.json", "x.metrics.json", "x.predictions.csv"),
        ("v1.2", "v1.2.winners.json", "v1.2.metrics.json", "v1.2.predictions.csv"),
        ("my joint.pt", "my joint.winners.json", "my joint.metrics.json", "my joint.predictions.csv"),
    ],
)
def test_files_beside_a_model_carry_its_name(model: str, winners: str, metrics: str, predictions: str) -> None:
    file = UPath("/runs/tiny") / model
    beside = (winners_beside(file), metrics_beside(file), predictions_beside(metrics_beside(file)))
    assert [path.name for path in beside] == [winners, metrics, predictions]


@pytest.mark.parametrize(
    ("metrics", "predictions"), [("m.json", "m.predictions.csv"), ("metrics", "metrics.predictions.csv")]
)
def test_predictions_are_named_after_their_metrics(metrics: str, predictions: str) -> None:
    assert predictions_beside(UPath("s3://bucket") / metrics) == UPath("s3://bucket") / predictions


def png() -> bytes:
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "PNG")
    return content.getvalue()


def parquet() -> bytes:
    return pd.DataFrame({"filename": ["a.png"], "crack": [1]}).to_parquet()


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        opened.writestr("notes/ovr_ray.json.txt", "precious")
    return content.getvalue()


FOREIGN = {
    "text": b"precious",
    "text on our metadata": b"ovr_ray.json lies in joint.pt",
    "an archive": archive(),
    "an archive that was cut off in front": archive()[9:],
    "zeros": bytes(100),
    "a table of labels": b"filename;crack\na.png;1\n",
    "a table with another header": b"filename,crack_probability,error\n",
    "a Parquet table": parquet(),
    "a Parquet table that was cut off": parquet()[:-9],
    "an image": png(),
    "an empty object": b"{}",
    "JSON": b'{"crack": {"f1": 0.5}, "tasks": {}}',
    "a list": b"[1]",
    "a page": b"<!doctype html><title>ovr-ray</title>",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_this_program_did_not_write_is_refused(kind: Kind, content: bytes, tmp_path: Path) -> None:
    file = UPath(tmp_path / "output")
    file.write_bytes(content)
    with pytest.raises(BadInput, match=f"output: is there already, and is no file of {kind} that ovr-ray wrote"):
        refuse_foreign({file: kind})


def test_what_does_not_exist_or_is_empty_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for kind in KINDS:
        refuse_foreign({UPath(tmp_path / "empty"): kind, UPath(tmp_path / "new"): kind})


def test_a_folder_is_refused_and_all_faults_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("precious")
    with pytest.raises(BadInput) as caught:
        refuse_foreign({UPath(tmp_path / "folder"): "model", UPath(tmp_path / "text"): "metrics"})
    assert [fault.where for fault in caught.value.faults] == [str(tmp_path / "folder"), str(tmp_path / "text")]
    assert "is a folder, and would have to be a file" in str(caught.value)


def test_everything_that_a_run_wrote_may_be_replaced_but_only_by_its_own_kind(finished: RunFolder) -> None:
    outputs = {file: kind for file, kind in finished.outputs().items() if file.exists()}
    assert set(outputs.values()) == {"model", "winners", "metrics", "predictions", "report"}
    refuse_foreign(outputs)
    for file, own in outputs.items():
        for other in {*KINDS} - {own}:
            with pytest.raises(BadInput, match=f"is no file of {other}"):
                refuse_foreign({file: other})


def test_in_a_bucket_a_file_of_somebody_else_is_refused_and_ones_own_is_not(finished: RunFolder, bucket: str) -> None:
    there = RunFolder(UPath(bucket) / "runs/tiny")
    for own, file in zip(finished.outputs(), there.outputs(), strict=True):
        file.write_bytes(own.read_bytes())
    there.refuse_foreign()
    for file in there.outputs():
        file.write_bytes(b"precious")
    with pytest.raises(BadInput) as caught:
        there.refuse_foreign()
    assert [fault.where for fault in caught.value.faults] == list(map(str, there.outputs()))
    refuse_foreign({UPath(bucket) / "new.csv": "predictions"})
    RunFolder(UPath(bucket) / "runs/new").refuse_foreign()
