"""The command line: what it prints, and the exit codes that it ends with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ovr_ray.commands.cli import main
from ovr_ray.errors import Interrupted, RunFailed
from ovr_ray.runs import RunFolder
from tests.support import PATIENCE, Ended, copy_run, run_cli

VERBS = (
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
)
JOBS = Path(__file__).parents[2] / "jobs"


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
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in printed for verb in VERBS)
    assert not {"torch", "ray", "pandas", "pydantic"} & set(printed.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    helped = run_cli(verb, "--help")
    assert helped.exit_code == 0
    assert f"ovr-ray {verb}" in helped.stdout


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.py")), ids=lambda job: job.stem)
def test_a_job_takes_the_arguments_of_its_verb(job: Path) -> None:
    command = [sys.executable, str(job), "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert f"ovr-ray {job.stem}" in helped.stdout


def test_check_prints_counts_and_trains_nothing(recipe: Path) -> None:
    done = run_cli("check", recipe)
    assert done.exit_code == 0, done.stderr
    assert "80 images, no fault" in done.stdout
    assert "crack" in done.stdout
    assert not (recipe.parent / "runs").exists()


def test_check_prints_every_fault_and_ends_with_2(recipe: Path) -> None:
    sets = ["data.filename=file", "tasks.crack.default.backbone=resnet81"]
    done = run_cli("check", recipe, *(f"--set={override}" for override in sets))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "has no column 'file'" in done.stderr
    assert "there is no such backbone" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_check_and_prepare_note_images_that_occur_twice_or_end_with_2(recipe: Path, cells: Path) -> None:
    folder = shutil.copytree(cells, recipe.parent / "cells")
    shutil.copy(folder / "images/cell05.png", folder / "images/cell06.png")
    for verb in ("check", "prepare"):
        noted = run_cli(verb, recipe, f"--set=data.images={folder}")
        assert noted.exit_code == 0
        assert "note: data.images: 1 image occurs more than once" in noted.stderr
    refused = run_cli("check", recipe, f"--set=data.images={folder}", "--set=data.duplicates=error")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("data.images: 1 image occurs more than once")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["run", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["status", "nowhere"], "is not a run folder"),
        (["report", "nowhere"], "is not a run folder"),
        (["combine", "nowhere"], "is not a run folder"),
        (["combine", "nowhere", "--format", "torchscript"], "is not a run folder"),
        (["combine", "nowhere", "--format", "tflite"], "'tflite' is not one of"),
        (["combine", "nowhere", "--top-k", "0"], "--top-k"),
        (["combine", "nowhere", "--pick", "crack"], "--pick 'crack': is not of the form TASK=TRIAL[@EPOCH]"),
        (["combine", "nowhere", "--pick", "=x"], "--pick '=x': is not of the form TASK=TRIAL[@EPOCH]"),
        (["combine", "nowhere", "--pick", "crack=1", "--pick", "crack=2"], "is one of 2 for task 'crack'"),
        (["combine", "nowhere", "--output", "no/joint.pt"], "its folder does not exist"),
        (["evaluate", "nowhere"], "no such model"),
        (["predict", "nowhere", "x.png"], "no such model"),
        (["predict", "nowhere", "x.png", "--output", "no/x.csv"], "its folder does not exist"),
        (["predict", "nowhere", "x.png", "--output", "x.txt"], "neither .csv nor .parquet"),
        (["predict", "nowhere", "x.png", "--format", "csv"], "is for a folder of parts"),
        (["predict", "nowhere", "x.png", "--format", "csv", "--output", "x.csv"], "is for a folder of parts"),
        (["preview", "nowhere.yaml", "--output", "sheet.jpg"], "sheet.jpg: is not a .png"),
        (["refit", "nowhere"], "is not a run folder"),
        (["tune"], "Missing argument"),
        (["tunee"], "No such command"),
    ],
)
def test_a_mistake_is_explained_and_ends_with_2(arguments: list[str], message: str) -> None:
    ended = run_cli(*arguments)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_result_may_not_be_written_into_the_folder_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovr_ray.ray_quirks.in_job", lambda: True)
    ended = run_cli("predict", "nowhere", "x.png", "--output", "x.csv")
    assert ended.exit_code == 2
    assert "--output x.csv: a job's folder goes away\n    -> give an absolute path" in ended.stderr


def test_a_folder_that_cannot_be_written_ends_with_1(cells: Path) -> None:
    ended = run_cli("init", cells / "data.csv", "--output", "/proc/recipe.yaml")
    assert ended.exit_code == 1
    assert ended.stderr.startswith("/proc/recipe.yaml: ")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RunFailed("no trial of task 'crack' came to its end"), 1, "no trial of task 'crack' came to its end\n"),
        (Interrupted("the same command resumes it"), 130, "the same command resumes it\n"),
        (OSError(28, "No space left on device", "/full/joint.pt"), 1, "/full/joint.pt: No space left on device\n"),
        (OSError("connection lost"), 1, "input/output: connection lost\n"),
    ],
)
def test_an_expected_error_is_printed_without_a_trace(
    error: Exception, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended_by(error, monkeypatch) == Ended(code, "", message)


def test_an_error_of_a_bucket_says_where_credentials_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    ended = ended_by(NoCredentialsError(), monkeypatch)
    assert ended.exit_code == 1
    assert ended.stderr == "storage: Unable to locate credentials\n    -> aws configure gives credentials\n"


def test_an_unexpected_error_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ended_by(ZeroDivisionError(), monkeypatch)


def ended_by(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Ended:
    """Return how the command line ends if a verb raises this error."""

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("ovr_ray.commands.cli.app", fail)
    return run_cli("status", "anything")


def test_a_job_gives_its_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/combine.py", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        main("combine")
    assert ended.value.code == 2
    assert "nowhere: is not a run folder" in capsys.readouterr().err


def test_preview_writes_the_contact_sheet(recipe: Path, tmp_path: Path) -> None:
    done = run_cli("preview", recipe, "--output", tmp_path / "sheet.png")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'sheet.png'}\n")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_prepare_prints_where_the_shards_are_and_how_large(recipe: Path, tmp_path: Path, ray_session: None) -> None:
    done = run_cli("prepare", recipe)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'runs/_images'}")
    assert "80 images in 1 shards, 0 MB" in done.stdout


def test_status_prints_how_far_a_search_is_from_its_folder_alone(finished: RunFolder) -> None:
    done = run_cli("status", finished.path)
    assert done.exit_code == 0, done.stderr
    assert "3/3" in done.stdout
    assert f"Complete; ovr-ray combine {finished.path}" in done.stdout.replace("\n", "")


def test_combine_prints_the_winners_and_the_file(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    done = run_cli("combine", run.path, "--task", "crack", "--pick", "crack=0", "--flip-average")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("crack: crack-0000, epoch ")
    assert "mean of four flips" in done.stdout
    assert done.stdout.splitlines()[-1] == str(run.joint_model)
    assert list(run.winners()) == ["crack"]


@pytest.mark.usefixtures("without_ray")
def test_evaluate_prints_the_scores_and_the_file(finished: RunFolder, tmp_path: Path) -> None:
    done = run_cli("evaluate", finished.path, "--output", tmp_path / "metrics.json")
    assert done.exit_code == 0, done.stderr
    assert "16 images, test split" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "metrics.json")


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_predict_writes_csv_and_parquet(
    name: str, finished: RunFolder, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cells)  # a relative path is relative to the folder of the person who calls
    done = run_cli("predict", finished.path, "images/cell01.png", "--output", tmp_path / name)
    assert done.stderr.endswith(f"{tmp_path / name}: 1 images\n")
    table = pd.read_csv(tmp_path / name, sep=";") if name == "out.csv" else pd.read_parquet(tmp_path / name)
    assert table.filename.tolist() == ["images/cell01.png"]
    assert 0 < table.crack_probability[0] < 1
    assert table.crack[0] in (0, 1)


def test_predict_without_an_output_prints_csv(finished: RunFolder, cells: Path) -> None:
    printed = run_cli("predict", finished.path, cells / "images/cell01.png").stdout
    assert printed.splitlines()[0] == "filename;crack_probability;crack;inactive_probability;inactive;error"
    assert len(printed.splitlines()) == 2


def test_predict_writes_a_folder_of_parts_and_resumes(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    command = ["predict", finished.path, cells / "images", "--output", tmp_path / "out", "--format", "csv"]
    for message in ("80 images, in 1 parts", "0 images, 80 more were there, in 1 parts"):
        assert message in run_cli(*command).stderr
    assert len((tmp_path / "out/part-00000.csv").read_text().splitlines()) == 81


def test_images_that_were_moved_are_given_to_the_verbs_that_need_them(
    finished: RunFolder, cells: Path, tmp_path: Path
) -> None:
    run = copy_run(finished, tmp_path)
    shutil.copytree(cells, tmp_path / "moved")
    recipe, page = run.path / "recipe.yaml", run.report
    recipe.write_text(recipe.read_text().replace(str(cells), "/gone"))
    before = recipe.read_text()
    for verb in ("combine", "refit"):
        ended = run_cli(verb, run.path)
        assert ended.exit_code == 2
        assert "/gone: holds none of the run's 80 images" in ended.stderr
        assert "--images DIR" in ended.stderr
    assert "No picture is shown: /gone holds none of the images" in run_cli("report", run.path).stderr
    assert "No picture is shown" in page.read_text()
    for verb in ("combine", "evaluate", "report"):
        done = run_cli(verb, run.path, "--images", tmp_path / "moved")
        assert (done.exit_code, done.stderr) == (0, "")
    assert "data:image/jpeg" in page.read_text()
    assert recipe.read_text() == before
    ended = run_cli("report", run.path, "--images", tmp_path / "nowhere")
    assert ended.exit_code == 2
    assert "nowhere: holds none of the run's" in ended.stderr


def test_combine_prints_the_files_of_a_model_by_its_name(finished: RunFolder, tmp_path: Path) -> None:
    done = run_cli("combine", finished.path, "--output", tmp_path / "v1.2")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "v1.2")
    assert {file.name for file in tmp_path.iterdir()} == {"v1.2", "v1.2.winners.json"}


def test_evaluate_takes_a_comma_file_of_one_task(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    pd.read_csv(cells / "data.csv", sep=";").head(10)[["filename", "crack"]].to_csv(labels, index=False)
    command = ["evaluate", finished.path, "--labels", labels, "--images", cells, "--output", tmp_path / "m.json"]
    assert "--separator ','" in run_cli(*command).stderr
    assert "--task crack" in run_cli(*command, "--separator", ",").stderr
    done = run_cli(*command, "--separator", ",", "--task", "crack")
    assert (done.exit_code, "inactive" in done.stdout) == (0, False)


def test_predict_tells_how_many_entries_of_a_folder_are_passed_over(
    finished: RunFolder, cells: Path, tmp_path: Path
) -> None:
    shutil.copy(cells / "images/cell01.png", tmp_path / "~a::b#c?.png")
    (tmp_path / "._a.png").write_text("of a Mac")
    done = run_cli("predict", finished.path, tmp_path)
    assert done.stderr.startswith("passed over in folders: 1 entries")
    assert done.stdout.splitlines()[1].startswith(f"{tmp_path}/~a::b#c?.png;0.")


def test_report_prints_the_file(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    done = run_cli("report", run.path)
    assert (done.exit_code, done.stdout) == (0, f"{run.report}\n")
    assert run.report.exists()
