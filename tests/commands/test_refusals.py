"""The command line, where files are not its own and runs are damaged: what it refuses, and leaves as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from ovr_ray.runs import RunFolder
from tests.support import copy_run, run_cli

PRECIOUS = "not of this program"


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_predict_replaces_its_own_tables_alone(name: str, finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    command = ["predict", finished.path, cells / "images/cell01.png", "--output", tmp_path / name]
    (tmp_path / name).write_text(PRECIOUS)
    ended = run_cli(*command)
    assert (ended.exit_code, (tmp_path / name).read_text()) == (2, PRECIOUS)
    assert f"{name}: is there already, and is no file of predictions that ovr-ray wrote" in ended.stderr
    (tmp_path / name).unlink()
    assert [run_cli(*command).exit_code for _ in range(2)] == [0, 0]


def test_preview_replaces_its_own_sheets_alone(recipe: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    Image.new("L", (8, 8)).save(sheet)
    before = sheet.read_bytes()
    ended = run_cli("preview", recipe, "--output", sheet)
    assert (ended.exit_code, sheet.read_bytes()) == (2, before)
    assert "sheet.png: is there already, and is no file of picture" in ended.stderr
    sheet.unlink()
    assert [run_cli("preview", recipe, "--output", sheet).exit_code for _ in range(2)] == [0, 0]


def test_report_replaces_its_own_pages_alone(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    run.report.write_text(PRECIOUS)
    ended = run_cli("report", run.path)
    assert (ended.exit_code, run.report.read_text()) == (2, PRECIOUS)


@pytest.mark.parametrize("verb", ["tune", "run"])
@pytest.mark.parametrize("name", ["recipe.yaml", "report.html"])
def test_a_search_leaves_the_folder_of_somebody_else_as_it_is(
    verb: str, name: str, recipe: Path, ray_session: None
) -> None:
    folder = recipe.parent / "runs/tiny"
    folder.mkdir(parents=True)
    (folder / name).write_text(PRECIOUS)
    ended = run_cli(verb, recipe)
    assert ended.exit_code == 2, ended.stderr
    assert f"{folder}" in ended.stderr
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(name, PRECIOUS)]


@pytest.mark.parametrize("verb", ["status", "combine", "report", "evaluate", "refit"])
def test_what_is_no_run_or_a_damaged_one_is_told(verb: str, finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    made = (run.path / "recipe.yaml").read_text()
    file, empty, foreign = tmp_path / "file", tmp_path / "empty", tmp_path / "foreign"
    for folder in (empty, foreign):
        folder.mkdir()
    for path, text in ((file, PRECIOUS), (foreign / "recipe.yaml", "name: flour\n")):
        path.write_text(text)
    (run.path / "joint.pt").unlink()
    for where, text in [(file, made), (empty, made), (foreign, made), (run.path, made[:200]), (run.path, f"[{made}")]:
        (run.path / "recipe.yaml").write_text(text)
        ended = run_cli(verb, where)
        assert ended.exit_code == 2, ended.stderr
        assert str(where) in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("verb", "code"), [("status", 0), ("report", 0), ("combine", 2), ("evaluate", 2), ("refit", 2)]
)
def test_a_run_without_trials_is_told(verb: str, code: int, finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    shutil.rmtree(run.path / "trials")
    for file in (run.joint_model, run.path / "winners.json"):
        file.unlink()
    ended = run_cli(verb, run.path)
    assert ended.exit_code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    if code == 2:
        assert str(run.path) in ended.stderr
