from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from upath import UPath

import ovr_ray
from ovr_ray import cluster
from ovr_ray.cluster import Share
from ovr_ray.errors import BadInput
from ovr_ray.images import read_image
from ovr_ray.joint import JointMetadata, JointModel, ModelFiles, load_torchscript, write_torchscript
from ovr_ray.recipe import Recipe
from ovr_ray.results import SavedModel
from ovr_ray.results.predict import in_turn, predict
from ovr_ray.runs import RunFolder
from tests.support import BACKBONE, GRAY, joint_metadata, random_images, random_sub_model


def test_a_saved_model_is_opened_by_its_file_or_by_its_run(finished: RunFolder, tmp_path: Path) -> None:
    of_run = SavedModel(str(finished.path))
    assert of_run.file == finished.joint_model
    assert of_run.digest == hashlib.sha256(finished.joint_model.read_bytes()).hexdigest()
    assert of_run.run == finished
    assert of_run.recipe().name == "tiny"
    shutil.copy(str(finished.joint_model), tmp_path / "copied.pt")
    copied = SavedModel(str(tmp_path / "copied.pt"))
    assert copied.run is None
    assert (copied.digest, copied.metadata) == (of_run.digest, of_run.metadata)


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such model"):
        ovr_ray.predict(tmp_path / "joint.pt", ["."])
    with pytest.raises(BadInput, match="no such model"):
        ovr_ray.predict(tmp_path, ["."])


def test_a_run_that_was_not_combined_has_no_model_yet(make_recipe: Callable[..., Recipe]) -> None:
    run = RunFolder.of(make_recipe())
    run.begin(make_recipe(), "fingerprint", pd.DataFrame({"filename": [], "part": []}))
    with pytest.raises(BadInput, match=r"this run has no joint\.pt yet\n    -> ovr-ray combine"):
        SavedModel(str(run.path))


def test_a_file_that_is_no_joint_model_is_refused(cells: Path) -> None:
    with pytest.raises(BadInput, match="is not a joint model"):
        SavedModel(str(cells / "data.csv"))


@pytest.mark.usefixtures("without_ray")
def test_predictions_are_those_of_the_joint_model_on_the_files(finished: RunFolder, cells: Path) -> None:
    table = ovr_ray.predict(finished, [str(cells / "images")])
    assert len(table) == 80
    assert list(table) == ["filename", "crack_probability", "crack", "inactive_probability", "inactive", "error"]
    joint, _ = load_torchscript(finished.joint_model.read_bytes())
    files = [read_image(name, GRAY) for name in table.filename]
    expected = joint(torch.from_numpy(np.stack(files))).detach().numpy()
    assert np.allclose(table[["crack_probability", "inactive_probability"]], expected, atol=1e-4)
    assert table.crack.tolist() == (expected[:, 0] >= joint.thresholds[0].item()).astype(int).tolist()
    by_label_file = ovr_ray.predict(finished, [str(cells / "data.csv")])
    assert by_label_file.filename.tolist() == pd.read_csv(cells / "data.csv", sep=";").filename.tolist()
    assert (by_label_file.error == "").all()
    probabilities = by_label_file.set_index("filename").crack_probability
    for name, probability in zip(table.filename, table.crack_probability, strict=True):
        assert probabilities[Path(name).relative_to(cells).as_posix()] == pytest.approx(probability, abs=1e-6)


def test_a_file_that_is_gone_is_a_row_with_the_reason(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    names = ["images/cell03.png", str(cells / "images/cell05.png"), "images/gone.png"]
    pd.DataFrame({"id": [1, 2, 3], "filename": names}).to_parquet(tmp_path / "some.parquet")
    table = ovr_ray.predict(finished, [str(tmp_path / "some.parquet")], str(cells))
    assert table.filename.tolist() == names
    assert table.error.tolist() == ["", "", "cannot be read: No such file or directory"]
    assert table.crack_probability.notna().tolist() == [True, True, False]
    assert table.crack.isna().tolist() == [False, False, True]


def test_a_bad_image_is_a_row_with_the_reason(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    shutil.copy(cells / "images/cell01.png", tmp_path / "good one.png")
    (tmp_path / "bad.png").write_text("not an image")
    table = ovr_ray.predict(finished, [str(tmp_path)])
    assert table.filename.tolist() == [str(tmp_path / "bad.png"), str(tmp_path / "good one.png")]
    assert str(table.error[0]).startswith("not an image")
    assert table.error[1] == ""
    assert table.crack.isna().tolist() == [True, False]


def test_a_few_images_start_no_cluster_and_get_the_answers_that_a_cluster_gives(
    finished: RunFolder, cells: Path
) -> None:
    picture = str(cells / "images" / "cell00.png")
    code = """
import sys, ray, ovr_ray
table = ovr_ray.predict(sys.argv[1], sys.argv[2:])
print(ray.is_initialized(), table.to_json())
"""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code, str(finished.path), picture]
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    started, _, answer = printed.partition(" ")
    by_workers = ovr_ray.predict(str(finished.path), [picture])
    assert started == "False"
    assert json.loads(answer)["crack_probability"]["0"] == pytest.approx(by_workers.crack_probability[0], abs=1e-5)


def test_a_worker_gets_a_gpu_with_its_share_of_the_cpus(ray_session: None) -> None:
    assert cluster.prediction_share() == (Share(cpus=1, gpus=1), 2)  # two CPUs and two GPUs are declared


@pytest.mark.slow
def test_a_cluster_whose_first_node_is_still_to_come_is_asked_for_one_worker(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(chunk: pd.DataFrame, model: ModelFiles, metadata: JointMetadata) -> pd.DataFrame:
        return chunk

    monkeypatch.setattr(cluster, "prediction_share", lambda: (Share(cpus=1, gpus=0), 0))
    model = JointModel(["a"], [random_sub_model(BACKBONE, 64)], [0.5]).eval()
    write_torchscript(model, UPath(tmp_path / "joint.pt"), joint_metadata("a"), list(random_images(count=1)))
    chunks = [pd.DataFrame({"filename": ["a.png"], "path": ["/a.png"]})] * 2
    assert sorted(dict(in_turn(SavedModel(str(tmp_path / "joint.pt")), chunks, process))) == [0, 1]


@pytest.mark.slow
def test_every_gpu_has_one_worker_which_keeps_it_from_chunk_to_chunk(ray_session: None, tmp_path: Path) -> None:
    def process(chunk: pd.DataFrame, model: ModelFiles, metadata: JointMetadata) -> pd.DataFrame:
        time.sleep(0.3)
        return pd.DataFrame({"process": [os.getpid()], "gpu": ray.get_runtime_context().get_accelerator_ids()["GPU"]})

    model = JointModel(["a"], [random_sub_model(BACKBONE, 64)], [0.5]).eval()
    write_torchscript(model, UPath(tmp_path / "joint.pt"), joint_metadata("a"), list(random_images(count=1)))
    chunks = [pd.DataFrame({"filename": ["a.png"], "path": ["/a.png"]})] * 8
    answers = dict(in_turn(SavedModel(str(tmp_path / "joint.pt")), chunks, process))
    assert sorted(answers) == list(range(8))
    by_process = pd.concat(answers.values()).groupby("process").gpu.unique()
    assert sorted(gpu for gpus in by_process for gpu in gpus) == ["0", "1"]  # each has one, and keeps it


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("name", ["img://x.png", "s3://b/x.png", "~x.png", "a::b.png", "/x.png"])
def test_below_a_root_a_name_is_a_plain_name_whatever_it_looks_like(
    name: str, finished: RunFolder, cells: Path, tmp_path: Path
) -> None:
    (tmp_path / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cells / "images" / "cell00.png", f"{tmp_path}/{name}")
    table = predict(SavedModel(str(finished.path)), [name], str(tmp_path))
    assert (table.filename[0], table.error[0]) == (name, "")
