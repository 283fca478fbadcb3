"""Real trials in a real MLflow store and in real offline runs of Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console
from upath import UPath

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.recipe import Recipe, parse
from ovr_ray.runs import RunFolder, Status, TrialFolder
from ovr_ray.search.trackers import refuse_lacking_packages, tracking
from tests.support import BACKBONE, free_port, plain_recipe, rows, scalars

STAGES = {1: 1e-3, 2: 1e-4}


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def tracked(cells: Path, tmp_path: Path, ray_session: None) -> RunFolder:
    """Return the run folder of a search of one task, two trials and two epochs, with both trackers."""
    ovr_ray.tune(two_trials(cells, tmp_path, trackers=["mlflow", "wandb"]))
    return RunFolder(UPath(tmp_path / "tiny"))


def two_trials(cells: Path, storage: Path, **search: Any) -> Recipe:
    default = {"backbone": BACKBONE, "weights": None, "batch_size": 16, "schedule": STAGES}
    task = {"trials": 2, "default": default, "space": {"weight_decay": {"uniform": [0.0, 0.01]}}}
    search = {"scheduler": "none", "max_epochs": 2, "grace_epochs": 1} | search
    return parse(plain_recipe(cells, storage, tasks={"crack": task}, search=search))


def runs_of(run: RunFolder) -> tuple[MlflowClient, list[Run]]:
    """Return a client of the run folder's MLflow store, and the runs in it in the order of their starts."""
    client = MlflowClient(f"sqlite:///{run.path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return client, client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


@pytest.mark.slow
@pytest.mark.long
def test_every_trial_is_in_both_trackers_and_resumes_under_its_name(tracked: RunFolder) -> None:
    client, runs = runs_of(tracked)
    assert {run.info.run_name for run in runs} == {"crack-0000", "crack-0001"}
    for run in runs:
        assert run.info.run_name
        assert_equals_the_run_folder(client, run, tracked.trial("crack", int(run.info.run_name[-4:])))
    assert_offline_runs_hold_the_trials(tracked)
    assert not {"WANDB_MODE", "MLFLOW_TRACKING_URI"} & set(os.environ)

    killed = tracked.trial("crack", 1)  # as if the driver was killed before the last epoch was reported
    killed.write_record(killed.record().model_copy(update={"status": Status.UNFINISHED}))
    killed.write_epochs(rows(killed.epochs()[:-1]))
    recipe = tracked.recipe()
    search = recipe.search.model_copy(update={"trackers": ("mlflow",)})
    ovr_ray.tune(recipe.model_copy(update={"search": search}))
    _, (*before, again) = runs_of(tracked)
    assert [run.info.run_id for run in before] == [run.info.run_id for run in runs]
    assert again.info.run_name == "crack-0001"
    assert again.data.tags["session"] > runs[0].data.tags["session"] == runs[1].data.tags["session"]
    assert [point.step for point in client.get_metric_history(again.info.run_id, "val_loss")] == [2]
    files = sorted(str(file) for file in killed.path.glob("events.out.tfevents.*"))
    assert [[event.step for event in scalars(file, "val_loss")] for file in files] == [[1, 2], [2]]


def assert_equals_the_run_folder(client: MlflowClient, run: Run, trial: TrialFolder) -> None:
    record, epochs = trial.record(), trial.epochs().drop(columns=["device", "time"])
    config = record.config.model_dump(mode="json")
    stages = {f"schedule/{epoch}": rate for epoch, rate in config.pop("schedule").items()}
    expected = {"task": "crack", "number": record.number} | config | stages
    assert run.data.params == {name: str(value) for name, value in expected.items()}
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == {*epochs.columns, "training_iteration"}
    for name in map(str, epochs):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == [1, 2]
        assert [point.value for point in points] == epochs[name].tolist()


def assert_offline_runs_hold_the_trials(run: RunFolder) -> None:
    contents = [file.read_bytes() for file in run.path.glob("wandb/offline-run-*/*.wandb")]
    assert len(contents) == 2
    for trial in run.trials():
        (content,) = (content for content in contents if trial.folder.name.encode() in content)
        numbers = [trial.record.config.weight_decay, *trial.folder.epochs().val_loss]
        assert all(repr(number).encode() in content for number in numbers)


def test_the_error_for_lacking_packages_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_lacking_packages(["mlflow", "wandb"])
    monkeypatch.setattr("ovr_ray.search.trackers.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"needs wandb\n.*pip install 'ovr-ray\[trackers\]'"):
        refuse_lacking_packages(["wandb"])


def test_a_server_that_does_not_answer_is_an_error_before_the_search(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    recipe = make_recipe(search={"trackers": ["mlflow"]})
    with pytest.raises(BadInput, match="Connection refused"), tracking(recipe, RunFolder.of(recipe), Console()):
        pass


@pytest.mark.parametrize(("tracker", "way_out"), [("mlflow", "MLFLOW_TRACKING_URI"), ("wandb", "WANDB_DIR")])
def test_a_tracker_cannot_write_into_a_bucket(tracker: str, way_out: str, make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(search={"trackers": [tracker]})
    bucket = RunFolder(UPath("memory://bucket/tiny"))
    with pytest.raises(BadInput, match=way_out), tracking(recipe, bucket, Console()):
        pass


def test_trials_stopped_by_ctrl_c_are_ended_and_a_lost_tracker_does_not_end_the_search(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe, console = make_recipe(search={"trackers": ["mlflow"]}), Console(record=True)
    run = RunFolder.of(recipe)
    run.path.mkdir(parents=True)
    trial = TuneTrial("train", stub=True, config={"task": "crack", "number": 0})
    with tracking(recipe, run, console) as (tracker,):
        tracker.on_trial_error(0, [], trial)  # its worker never came up
        tracker.on_trial_start(0, [], trial)
        tracker.on_experiment_end([trial])
    _, (stopped,) = runs_of(run)
    assert stopped.info.status == "FAILED"
    with tracking(recipe, run, console) as (tracker,):
        tracker.on_trial_start(0, [], trial)
        (run.path / "mlflow.db").write_bytes(b"no database" * 1000)
        for epoch in (1, 2):
            tracker.on_trial_result(0, [], trial, {"epoch": epoch, "val_f1": 0.5})
        tracker.on_trial_complete(0, [], trial)
    assert console.export_text().count("mlflow gets no more epochs") == 1


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "online"),
        ({"WANDB_MODE": "online"}, "offline"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k" * 40}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_wandb_is_online_only_with_a_login_and_never_asks_for_one(
    variables: dict[str, str], mode: str, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = make_recipe(search={"trackers": ["wandb"]})
    with tracking(recipe, RunFolder.of(recipe), Console()):
        assert os.environ["WANDB_MODE"] == mode
    assert os.environ.get("WANDB_MODE") == variables.get("WANDB_MODE")


def test_a_wrong_variable_of_wandb_is_refused_with_its_value(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    recipe = make_recipe(search={"trackers": ["wandb"]})
    with pytest.raises(BadInput, match="sometimes"), tracking(recipe, RunFolder.of(recipe), Console()):
        pass
