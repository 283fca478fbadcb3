"""The command line as people meet it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import ovr_ray
from ovr_ray.commands.cli import app, main
from ovr_ray.runs import RunFolder
from tests.support import PATIENCE, plain_recipe

VERBS = [
    "init",
    "check",
    "prepare",
    "preview",
    "tune",
    "status",
    "refit",
    "combine",
    "evaluate",
    "predict",
    "report",
    "run",
    "submit",
]
JOBS = Path(__file__).parents[1] / "jobs"


def call(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ovr_ray.commands.cli", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "120"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )


@pytest.fixture
def recipe(cells: Path, tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain_recipe(cells, tmp_path / "runs")))
    return file


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["ovr-ray", "--help"]
from ovr_ray.commands.cli import main
try:
    main()
finally:
    print(*sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in told for verb in VERBS)
    assert not {"torch", "ray", "pandas", "pydantic"} & set(told.split())


def test_every_verb_is_a_python_function_too() -> None:
    assert {*VERBS, "predict_parts"} == set(ovr_ray.__all__)
    assert all(callable(getattr(ovr_ray, verb)) for verb in ovr_ray.__all__)


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.py")), ids=lambda job: job.stem)
def test_a_job_takes_the_arguments_of_its_verb(job: Path) -> None:
    helped = subprocess.run([sys.executable, job, "--help"], capture_output=True, text=True, check=True)
    assert f"ovr-ray {job.stem}" in helped.stdout


def test_check_tells_counts_and_trains_nothing(recipe: Path) -> None:
    done = call("check", recipe)
    assert done.returncode == 0, done.stderr
    assert "80 images, no fault" in done.stdout
    assert "crack" in done.stdout
    assert not (recipe.parent / "runs").exists()


def test_check_tells_faults_of_labels_backbones_and_weights_together(recipe: Path) -> None:
    sets = ["data.filename=file", "tasks.crack.default.backbone=resnet81", "tasks.inactive.default.weights=/no.pth"]
    done = call("check", recipe, *(f"--set={override}" for override in sets))
    assert done.returncode == 2
    for told in ("has no column 'file'", "there is no such backbone", "there is no file /no.pth"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_check_names_undecodable_images(recipe: Path, cells: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cells / "data.csv", sep=";")
    (tmp_path / "images").mkdir()
    for name in table.filename:
        (tmp_path / name).write_bytes((cells / name).read_bytes())
    (tmp_path / table.filename[7]).write_text("not an image")
    done = call("check", recipe, "--set", f"data.images={tmp_path}")
    assert done.returncode == 2
    assert f"{table.filename[7]}: not an image" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tune", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["combine", "nowhere"], "is not a run folder"),
        (["combine", "nowhere", "--format", "torchscript"], "is not a run folder"),
        (["combine", "nowhere", "--format", "tflite"], "'tflite' is not one of"),
        (["evaluate", "nowhere"], "no such model"),
        (["predict", "nowhere", "x.png"], "no such model"),
        (["predict", "nowhere", "x.png", "--output", "no/x.csv"], "its folder does not exist"),
        (["predict", "nowhere", "x.png", "--output", "x.txt"], "neither .csv nor .parquet"),
        (["combine", "nowhere", "--pick", "crack"], "TASK=TRIAL"),
        (["tune"], "Missing argument"),
        (["tunee"], "No such command"),
    ],
)
def test_a_mistake_is_told_in_words_with_exit_code_2(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ovr-ray", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cells: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["ovr-ray", "init", str(cells / "data.csv"), "--output", "/proc/recipe.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("/proc/recipe.yaml: ")


def test_a_starter_recipe_passes_check(cells: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(cells / "data.csv", sep=";").rename(columns={"crack": "has crack?"})
    labels.insert(0, "id", range(len(labels)))
    labels.to_csv(tmp_path / "labels.csv", sep=",", index=False)
    assert call("init", tmp_path / "labels.csv", "--images", cells, cwd=tmp_path).returncode == 0
    text = (tmp_path / "recipe.yaml").read_text()
    assert "# 32 of 80 images (40.0%) are positive" in text
    no_download = [f"--set=tasks.{task}.space.weights=null" for task in ("has-crack", "inactive")]
    done = call("check", "recipe.yaml", *no_download, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = call("init", tmp_path / "labels.csv", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_init_tells_what_it_did_not_find(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a;b\n1;yes\n2;no\n")
    done = call("init", "labels.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "no column names image files" in done.stderr
    assert "no column holds 0 and 1" in done.stderr


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_predict_writes_csv_and_parquet(
    name: str, finished: RunFolder, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cells)  # relative paths are those of the person who calls
    CliRunner().invoke(app, ["predict", str(finished.path), "images/cell01.png", "--output", str(tmp_path / name)])
    table = pd.read_csv(tmp_path / name, sep=";") if name == "out.csv" else pd.read_parquet(tmp_path / name)
    assert table.filename.tolist() == ["images/cell01.png"]
    assert 0 < table.crack_probability[0] < 1
    assert table.crack[0] in (0, 1)


def test_status_tells_how_far_a_search_is_from_its_folder_alone(finished: RunFolder) -> None:
    done = call("status", finished.path)
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stdout
    assert f"Complete; ovr-ray combine {finished.path}" in done.stdout.replace("\n", "")


def test_predict_without_output_prints_csv(finished: RunFolder, cells: Path) -> None:
    printed = CliRunner().invoke(app, ["predict", str(finished.path), str(cells / "images/cell01.png")]).stdout
    assert printed.splitlines()[0] == "filename;crack_probability;crack;inactive_probability;inactive;error"
    assert len(printed.splitlines()) == 2
