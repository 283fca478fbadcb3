from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import ovr_ray
from ovr_ray import cluster
from ovr_ray.commands.cli import app
from ovr_ray.errors import BadInput
from ovr_ray.images import read_image
from ovr_ray.joint import load_torchscript
from ovr_ray.results.predict import Model, in_turn
from ovr_ray.runs import RunFolder


@pytest.fixture(scope="module")
def undisturbed(finished: RunFolder, cells: Path) -> pd.DataFrame:
    """One table of all cells, as a label file names them."""
    return ovr_ray.predict(finished, [str(cells / "data.csv")])


def concatenated(folder: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("part-*.parquet"))), ignore_index=True)


def assert_alike(table: pd.DataFrame, other: pd.DataFrame) -> None:
    """Batches of other sizes are added up in another order."""
    pd.testing.assert_frame_equal(table, other, check_dtype=False, atol=1e-6)


def test_a_table_names_images_below_its_folder(undisturbed: pd.DataFrame, cells: Path) -> None:
    assert undisturbed.filename.tolist() == pd.read_csv(cells / "data.csv", sep=";").filename.tolist()
    assert (undisturbed.error == "").all()


def test_a_parquet_table_names_images_below_a_folder_or_from_the_root(
    finished: RunFolder, cells: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    names = ["images/cell03.png", str(cells / "images/cell05.png"), "images/gone.png"]
    pd.DataFrame({"id": [1, 2, 3], "filename": names}).to_parquet(tmp_path / "some.parquet")
    table = ovr_ray.predict(finished, [str(tmp_path / "some.parquet")], str(cells))
    assert table.filename.tolist() == names
    assert table.error.tolist() == ["", "", "cannot be read: No such file or directory"]
    assert table.crack_probability[:2].tolist() == pytest.approx(undisturbed.crack_probability[[3, 5]].tolist())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file;crack\na.png;1\n", "has no column 'filename'\n    -> its columns: file, crack"),
        ("filename;crack\na.png;1\n;0\n", "1 rows name no file, row 3 for one"),
        ("filename;filename\na.png;b.png\n", "has column 'filename' twice"),
    ],
)
def test_a_table_without_names_is_told(text: str, told: str, finished: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        ovr_ray.predict(finished, [str(tmp_path / "names.csv")])
    assert told in str(caught.value)


def test_images_of_many_sizes_and_bad_ones_keep_their_places(finished: RunFolder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(75):  # more than two batches
        size = (30, 40) if number % 3 else (50, 50 + number)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "40.png").write_text("not an image")
    table = ovr_ray.predict(finished, [str(tmp_path)])
    assert table.index[table.error != ""].tolist() == [40]
    joint, _ = load_torchscript((finished.path / "joint.pt").read_bytes())
    for number in (0, 33, 39, 41, 74):
        alone = joint(torch.from_numpy(read_image(table.filename[number], "gray"))[None])
        assert table.crack_probability[number] == pytest.approx(alone[0, 0].item(), abs=1e-5)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_parts_together_are_the_one_table(
    form: str, finished: RunFolder, cells: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    done = ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(tmp_path / "out"), None, form, 30)
    assert [file.name for file in done.files] == [f"part-0000{number}.{form}" for number in range(3)]
    assert (done.images, done.unreadable, done.already) == (80, 0, 0)
    if form == "csv":
        tables = [pd.read_csv(file, sep=";", keep_default_na=False) for file in done.files]
        assert_alike(pd.concat(tables, ignore_index=True), undisturbed)
    else:
        assert_alike(pd.read_parquet(tmp_path / "out"), undisturbed)  # the folder as it is
    again = ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(tmp_path / "out"), None, form, 30)
    assert (again.images, again.already) == (0, 80)


@pytest.fixture(scope="module")
def parts(finished: RunFolder, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of parquet, 30 images a part."""
    folder = tmp_path_factory.mktemp("parts")
    ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(folder), part_size=30)
    return folder


@pytest.mark.parametrize(
    ("form", "size", "names", "told"),
    [
        ("parquet", 40, "data.csv", "its parts differ in part_size: 30, and now 40"),
        ("csv", 30, "data.csv", "its parts differ in format: parquet, and now csv"),
        ("parquet", 30, "images/cell00.png", "how many images: 80, and now 1"),
    ],
)
def test_parts_of_something_else_are_refused(
    form: str, size: int, names: str, told: str, finished: RunFolder, cells: Path, parts: Path
) -> None:
    before = {file.name: file.read_bytes() for file in parts.iterdir()}
    with pytest.raises(BadInput) as caught:
        ovr_ray.predict_parts(finished, [str(cells / names)], str(parts), None, form, size)
    assert {file.name: file.read_bytes() for file in parts.iterdir()} == before
    assert told in str(caught.value)
    assert "give another folder" in str(caught.value)


def test_parts_of_unknown_origin_are_refused(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_text("what is this")
    with pytest.raises(BadInput, match="nobody knows the origin of"):
        ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(tmp_path))


def test_the_command_line_writes_a_folder_of_parts(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    command = ["predict", str(finished.path), str(cells / "images"), "--output", str(tmp_path / "out")]
    for told in ("80 images, in 1 parts", "0 images, 80 more were there, in 1 parts"):
        assert told in CliRunner().invoke(app, [*command, "--format", "csv"]).stderr
    assert len((tmp_path / "out/part-00000.csv").read_text().splitlines()) == 81


def test_a_format_without_a_folder_is_told(finished: RunFolder) -> None:
    with pytest.raises(BadInput, match="is for a folder of parts"):
        CliRunner().invoke(app, ["predict", str(finished.path), "x.png", "--format", "csv"], catch_exceptions=False)


IN_PARTS_OF_TWO = """
import sys, ovr_ray
ovr_ray.predict_parts(sys.argv[1], sys.argv[3:], sys.argv[2], part_size=2)
"""


@pytest.mark.slow
def test_a_killed_prediction_goes_on_where_it_was(
    finished: RunFolder, cells: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    names = [str(cells / "data.csv")] * 2  # so many that a cluster is started
    command = [sys.executable, "-c", IN_PARTS_OF_TWO, str(finished.path), str(tmp_path), *names]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (whole := list(tmp_path.glob("part-*"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait(30)
    before = {file: file.stat().st_mtime_ns for file in whole}
    time.sleep(2)  # Ray ends with its driver
    count = len(list(tmp_path.glob("part-*")))
    assert count < 80
    done = ovr_ray.predict_parts(finished, names, str(tmp_path), part_size=2)
    assert (done.images, done.already) == (160 - 2 * count, 2 * count)
    assert {file: file.stat().st_mtime_ns for file in whole} == before
    assert_alike(concatenated(tmp_path), pd.concat([undisturbed] * 2, ignore_index=True))


def test_a_worker_gets_a_gpu_with_its_share_of_the_cpus(ray_session: None) -> None:
    assert cluster.shares() == ({"CPU": 1, "GPU": 1}, 2)  # two CPUs and two GPUs are declared


def test_a_worker_with_a_gpu_keeps_its_model_from_chunk_to_chunk(finished: RunFolder) -> None:
    def process(chunk: pd.DataFrame, file: str, digest: str) -> pd.DataFrame:
        return pd.DataFrame({"process": [os.getpid()]})

    chunks = [pd.DataFrame({"filename": ["a.png"], "path": ["/a.png"]})] * 8
    answers = dict(in_turn(Model(str(finished.path)), chunks, process))
    assert sorted(answers) == list(range(8))
    assert pd.concat(answers.values()).process.nunique() <= 2
