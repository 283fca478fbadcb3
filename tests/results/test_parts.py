from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from upath import UPath

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.recipe import TableFormat
from ovr_ray.results import write_table
from ovr_ray.results.parts import _Part, versions
from ovr_ray.runs import RunFolder


@pytest.fixture(scope="module")
def undisturbed(finished: RunFolder, cells: Path) -> pd.DataFrame:
    """Return the predictions of all cells as one table."""
    return ovr_ray.predict(finished, [str(cells / "data.csv")])


@pytest.fixture(scope="module")
def parts(finished: RunFolder, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of Parquet parts, with 30 images each; no test changes it."""
    folder = tmp_path_factory.mktemp("parts")
    ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(folder), part_size=30)
    return folder


def concatenated(folder: Path) -> pd.DataFrame:
    """Return the Parquet parts of a folder as one table."""
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("part-*.parquet"))), ignore_index=True)


def assert_alike(table: pd.DataFrame, other: pd.DataFrame) -> None:
    """Compare up to rounding: batches of other sizes are added up in another order."""
    pd.testing.assert_frame_equal(table, other, check_dtype=False, atol=1e-6)


@pytest.mark.parametrize("form", ["parquet", pytest.param("csv", marks=pytest.mark.slow)])
def test_the_parts_together_are_the_one_table_and_only_missing_ones_are_predicted_again(
    form: TableFormat, finished: RunFolder, cells: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    done = ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(tmp_path / "out"), None, form, 30)
    assert [file.name for file in done.files] == [f"part-0000{number}.{form}" for number in range(3)]
    assert (done.images, done.unreadable, done.already) == (80, 0, 0)
    if form == "csv":
        tables = [pd.read_csv(file, sep=";", keep_default_na=False) for file in done.files]
        assert_alike(pd.concat(tables, ignore_index=True), undisturbed)
    else:
        assert_alike(pd.read_parquet(tmp_path / "out"), undisturbed)  # readers take the folder as it is
    done.files[2].unlink()
    written = [file.stat().st_mtime_ns for file in done.files[:2]]
    for again in ((20, 60), (0, 80)):
        more = ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(tmp_path / "out"), None, form, 30)
        assert (more.images, more.already) == again
    assert [file.stat().st_mtime_ns for file in done.files[:2]] == written
    assert done.files[2].exists()


@pytest.mark.usefixtures("without_ray")
def test_unreadable_images_are_counted(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("filename\nimages/cell00.png\nimages/gone.png\nimages/gone, too.png\n")
    paths = [str(tmp_path / "names.csv")]
    done = ovr_ray.predict_parts(finished, paths, str(tmp_path / "out"), str(cells), part_size=2)
    assert (done.images, done.unreadable) == (3, 2)


@pytest.mark.parametrize(
    ("form", "size", "names", "message"),
    [
        ("parquet", 40, "data.csv", "its parts differ in part_size: 30, and now 40"),
        ("csv", 30, "data.csv", "its parts differ in format: parquet, and now csv"),
        ("parquet", 30, "images/cell00.png", "how many images: 80, and now 1"),
    ],
)
def test_parts_of_something_else_are_refused_and_kept(
    form: TableFormat, size: int, names: str, message: str, finished: RunFolder, cells: Path, parts: Path
) -> None:
    before = {file.name: file.read_bytes() for file in parts.iterdir()}
    with pytest.raises(BadInput) as caught:
        ovr_ray.predict_parts(finished, [str(cells / names)], str(parts), None, form, size)
    assert {file.name: file.read_bytes() for file in parts.iterdir()} == before
    assert message in str(caught.value)
    assert "give another folder" in str(caught.value)


def test_parts_of_unknown_origin_are_refused(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_text("what is this")
    with pytest.raises(BadInput, match="nobody knows the origin of"):
        ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(tmp_path))


def test_an_output_that_is_a_file_is_refused(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(BadInput, match="out: is a file"):
        ovr_ray.predict_parts(finished, [str(cells / "data.csv")], str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_is_written_by_the_suffix_of_its_file(name: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"filename": ["a.png"], "crack_probability": [0.25], "crack": [0], "error": [""]})
    write_table(table, UPath(tmp_path / name))
    file = tmp_path / name
    read = pd.read_csv(file, sep=";", keep_default_na=False) if name.endswith(".csv") else pd.read_parquet(file)
    pd.testing.assert_frame_equal(read, table)


@pytest.fixture
def some(cells: Path, tmp_path: Path) -> Path:
    """Return a folder of 6 images that a test may change."""
    folder = tmp_path / "some"
    folder.mkdir()
    for number in range(6):
        shutil.copy(cells / f"images/cell{number:02d}.png", folder)
    return folder


def by_name(folder: Path) -> dict[str, float]:
    """Return the probabilities in a folder of Parquet parts by the names of their images."""
    table = concatenated(folder)
    return dict(zip(table.filename.map(lambda name: Path(name).name), table.crack_probability, strict=True))


@pytest.mark.usefixtures("without_ray")
def test_a_part_whose_images_changed_is_made_again(finished: RunFolder, some: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = ovr_ray.predict_parts(finished, [str(some)], str(out), part_size=2)
    before, times = by_name(out), [file.stat().st_mtime_ns for file in done.files]
    shutil.copy(some / "cell00.png", some / "cell03.png")
    again = ovr_ray.predict_parts(finished, [str(some)], str(out), part_size=2)
    assert (again.images, again.already) == (2, 4)
    assert by_name(out) == pytest.approx(before | {"cell03.png": before["cell00.png"]}, abs=1e-6)
    assert [file.stat().st_mtime_ns == time for file, time in zip(done.files, times, strict=True)] == [
        True,
        False,
        True,
    ]
    (some / "cell05.png").unlink()
    (some / "cell05.png").write_text("no longer an image")
    broken = ovr_ray.predict_parts(finished, [str(some)], str(out), part_size=2)
    assert (broken.images, broken.unreadable, broken.already) == (2, 1, 4)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_damaged_parts_are_made_again(form: TableFormat, finished: RunFolder, some: Path, tmp_path: Path) -> None:
    done = ovr_ray.predict_parts(finished, [str(some)], str(tmp_path / "out"), None, form, 1)
    before = [file.read_bytes() for file in done.files]
    half = len(before[2]) // 2
    damaged = [b"", before[1][:-20], before[2][:half], before[3].replace(b"cell03", b"cell09"), bytes(1000)]
    for file, content in zip(done.files, damaged, strict=False):
        file.write_bytes(content)
    again = ovr_ray.predict_parts(finished, [str(some)], str(tmp_path / "out"), None, form, 1)
    assert (again.images, again.already) == (5, 1)
    assert [file.read_bytes() for file in done.files] == before


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_part_is_whole_if_it_has_an_answer_or_an_error_for_each_image(form: TableFormat, tmp_path: Path) -> None:
    whole = pd.DataFrame({"filename": ["NA", "b.png"], "crack_probability": [0.25, None], "crack": [0, None]})
    whole = whole.astype({"crack": "Int64"}).assign(error=["", "is empty"])
    part = _Part(UPath(tmp_path / f"part.{form}"), whole[["filename"]], "", ["crack"])
    others = [
        whole.drop(columns="error"),
        whole.rename(columns={"crack": "dust"}),
        whole.assign(dust=1),
        whole.assign(filename=["NA", "c.png"]),
        whole.assign(crack_probability=["0.2x", ""]),
        whole.assign(crack=whole.crack[1]),
        whole[:1],
    ]
    for table in (whole, *others):
        write_table(table, part.file)
        assert part.is_whole() == (table is whole), table


def test_versions_of_images_on_a_disk_and_in_a_bucket_change_with_their_content(some: Path, bucket: str) -> None:
    inside = [f"{bucket}/images/a#b.png", f"{bucket}/images/deep/c.png"]
    for name, source in zip(inside, ("cell00.png", "cell01.png"), strict=True):
        UPath(name).write_bytes((some / source).read_bytes())
    paths = pd.Series(
        [*inside, *map(str, some.iterdir()), f"{bucket}/gone.png", "/gone.png", "https://host.invalid/a.png"]
    )
    before = versions(paths)
    assert set(before) == {*inside, *map(str, some.iterdir())}
    UPath(inside[0]).write_bytes((some / "cell02.png").read_bytes())
    shutil.copy(some / "cell02.png", some / "cell03.png")
    after = versions(paths)
    assert {path for path in after if after[path] != before[path]} == {inside[0], str(some / "cell03.png")}


@pytest.mark.usefixtures("without_ray")
def test_a_folder_of_an_older_version_resumes(finished: RunFolder, some: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = ovr_ray.predict_parts(finished, [str(some)], str(out), part_size=2)
    file = out / "_predictions.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in written.items() if name != "parts"}))
    done.files[2].unlink()
    again = ovr_ray.predict_parts(finished, [str(some)], str(out), part_size=2)
    assert (again.images, again.already) == (2, 4)
    assert json.loads(file.read_text()) == written


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"model": "precious"}'])
def test_a_fingerprint_that_is_damaged_or_of_another_program_is_refused(
    text: str, finished: RunFolder, some: Path, tmp_path: Path
) -> None:
    (tmp_path / "_predictions.json").write_text(text)
    with pytest.raises(BadInput, match=r"its _predictions\.json is damaged, or another program's"):
        ovr_ray.predict_parts(finished, [str(some)], str(tmp_path))
    assert (tmp_path / "_predictions.json").read_text() == text


IN_PARTS_OF_TWO = """
import sys, ovr_ray
ovr_ray.predict_parts(sys.argv[1], sys.argv[3:], sys.argv[2], part_size=2)
"""


@pytest.mark.slow
def test_a_killed_prediction_resumes_with_the_parts_that_are_missing(
    finished: RunFolder, cells: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    names = [str(cells / "data.csv")] * 2  # more images than are predicted without a cluster
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
