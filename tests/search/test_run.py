"""Real searches on real Ray Tune."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from upath import UPath

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.recipe import Config, Recipe, parse
from ovr_ray.runs import RunFolder, Status
from ovr_ray.search import tune
from ovr_ray.training import learning_rate
from tests.support import BACKBONE, EVERY_OPTION, PATIENCE, ancestors, copy_run, plain_recipe, rows, scalars

METRICS = {
    "train_loss",
    "val_loss",
    "val_f1",
    "threshold",
    "val_f1_at_half",
    "val_average_precision",
    "lr",
    "images_per_s",
}


def test_a_search_trains_every_task_to_its_budget(finished: RunFolder) -> None:
    records = [trial.record for trial in finished.trials()]
    assert Counter(record.task for record in records) == {"crack": 3, "inactive": 3}
    assert all(record.status.is_scored for record in records)
    assert {record.config.lr for record in records if record.number == 0} == {1e-3}


def test_every_epoch_is_logged_with_its_counts(finished: RunFolder) -> None:
    for trial in finished.trials():
        epochs = trial.folder.epochs()
        assert epochs.epoch.tolist() == list(range(1, len(epochs) + 1))
        assert set(epochs) > METRICS
        assert (epochs[[f"val_{count}" for count in ("tn", "fp", "fn", "tp")]].sum(axis=1) == 16).all()


def test_a_trial_keeps_its_best_and_its_latest_checkpoint(finished: RunFolder) -> None:
    metric = f"val_{finished.recipe().search.metric}"
    for trial in finished.trials():
        kept = [int(folder.name[-4:]) for folder in trial.checkpoints]
        ranked = trial.folder.epochs().sort_values([metric, "epoch"], ascending=[False, True])
        assert len(kept) <= 2
        assert {ranked.epoch.iloc[0], ranked.epoch.max()} <= set(kept)


def test_tune_keeps_no_metrics_of_trials_that_have_ended(finished: RunFolder) -> None:
    (snapshot,) = (finished.path / "trials").glob("experiment_state-*.json")
    kept = [json.loads(runtime) for _, runtime in json.loads(snapshot.read_text())["trial_data"]]
    assert len(kept) == len(finished.trials())
    assert all(trial["metric_n_steps"] == {} and trial["last_result"] for trial in kept)


def test_tensorboard_shows_every_trial_by_task_and_number(finished: RunFolder) -> None:
    """TensorBoard names a run by its folder below ``--logdir``, which is the trial's."""
    shown = {Path(file).parent.name for file in (finished.path / "trials").rglob("events.out.tfevents.*")}
    assert shown == {trial.folder.name for trial in finished.trials()}
    for trial in finished.trials():
        epochs = trial.folder.epochs()
        for metric in ("train_loss", "val_loss", "val_f1", "val_average_precision"):
            drawn = scalars(str(trial.folder.path), metric)
            assert [event.step for event in drawn] == epochs.epoch.tolist()
            assert [event.value for event in drawn] == pytest.approx(epochs[metric].tolist())


def test_tensorboard_compares_hyperparameters(finished: RunFolder) -> None:
    for trial in finished.trials():
        record = trial.record
        events = EventAccumulator(str(trial.folder.path))
        events.Reload()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        shown = HParamsPluginData.FromString(content).session_start_info.hparams
        assert shown["task"].string_value == record.task
        given = {name: value for name, value in record.config.model_dump(mode="json").items() if value is not None}
        values = {name: value.string_value or value.number_value for name, value in shown.items()}
        epochs = finished.recipe().search.max_epochs
        assert values == {"task": record.task, "number": record.number, "epochs": epochs} | given
        summed = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
        metrics = HParamsPluginData.FromString(summed).experiment.metric_infos
        assert {"ray/tune/val_f1", "ray/tune/val_average_precision"} <= {metric.name.tag for metric in metrics}


def test_the_winners_are_plain_json(finished: RunFolder) -> None:
    winners = json.loads((finished.path / "winners.json").read_text())
    assert set(winners["crack"]) == {"trial", "config", "epoch", "metrics", "threshold", "checkpoint"}
    assert (finished.path / winners["crack"]["checkpoint"] / "sub_model.json").exists()


def test_a_finished_search_is_not_run_again(finished: RunFolder) -> None:
    before = {str(file): file.stat().st_mtime for file in finished.path.rglob("epochs.csv")}
    assert ovr_ray.tune(finished.recipe()).path == finished.path
    assert before == {str(file): file.stat().st_mtime for file in finished.path.rglob("epochs.csv")}


@pytest.mark.slow
def test_a_search_killed_after_its_last_checkpoint_ends_with_every_epoch(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    last = next(trial for trial in run.trials() if trial.record.status == Status.FINISHED)
    epochs = last.folder.epochs()
    last.folder.write_record(last.record.model_copy(update={"status": Status.UNFINISHED}))
    last.folder.write_epochs(rows(epochs[:-1]))
    ovr_ray.tune(run.recipe())
    assert last.folder.record().status == Status.FINISHED
    assert last.folder.epochs().equals(epochs)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_search_begins_with_the_notes_on_its_images(
    make_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cells, tmp_path / "cells"))
    shutil.copy(folder / "images/cell05.png", folder / "images/cell06.png")
    task = {"trials": 1, "default": {"backbone": BACKBONE, "weights": None}}
    short = {"max_epochs": 1, "grace_epochs": 1}
    console = Console(file=io.StringIO(), record=True)
    tune(make_recipe(data={"images": str(folder)}, tasks={"crack": task}, search=short), console=console)
    told, _, later = console.export_text().partition("80 images decoded")
    assert told.startswith("note: data.images: 1 image occurs more than once")
    assert "'images/cell05.png' = 'images/cell06.png': in " in told
    assert "best of crack" in later


@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_fits_no_node_is_an_error_at_once(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(BadInput, match="no node of this cluster has 64 CPU"):
        ovr_ray.tune(make_recipe(resources={"cpu": 64, "gpu": 0}))


def test_an_unknown_task_is_refused(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(BadInput, match="tasks: crack, inactive"):
        ovr_ray.tune(make_recipe(), ["crak"])


class Search:
    """The job ``jobs/tune.py`` in a process of its own, with a Ray of its own."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.run = RunFolder(UPath(recipe["storage"]) / recipe["name"])
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe))
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, "jobs/tune.py", str(file)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_epochs(self, count: int, trials: int = 1) -> None:
        """Wait until this many trials have this many epochs each."""
        for _ in range(PATIENCE * 5):
            if sum(len(trial.folder.epochs()) >= count for trial in self.run.trials()) >= trials:
                return
            assert self.process.poll() is None, self.output()
            time.sleep(0.2)
        raise AssertionError("no epoch came")

    def output(self) -> str:
        """Wait for the end of the process; return all that it printed."""
        return self.process.communicate(timeout=PATIENCE)[0]


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(cells: Path, tmp_path: Path) -> None:
    second_search = ovr_ray.tune  # its imports take seconds, so they are made before the clock ticks
    recipe = plain_recipe(cells, tmp_path, search={"max_epochs": 14, "scheduler": "none"})
    plain = recipe["tasks"]["crack"] | {"trials": 1}
    every_option = plain | {"default": plain["default"] | EVERY_OPTION, "space": {}}
    recipe["tasks"] = {"crack": plain, "inactive": every_option}
    search = Search(tmp_path, recipe)
    search.wait_for_epochs(1, trials=2)
    signal_workers(search.process.pid, signal.SIGSTOP)  # so that it cannot end before it is found at work
    begun = (search.run.path / "recipe.yaml").read_text()
    with pytest.raises(BadInput, match=f"process {search.process.pid} on .* is at work in it"):
        second_search(parse(recipe | {"checkpoints": {"keep": 5}}))
    assert (search.run.path / "recipe.yaml").read_text() == begun
    signal_workers(search.process.pid, signal.SIGCONT)
    search.process.send_signal(signal.SIGINT)
    printed = search.output()
    assert search.process.returncode == 130, printed
    assert "run the same command again" in printed
    assert "Traceback" not in printed
    before = {trial.folder.name: trial.folder.epochs() for trial in search.run.trials()}
    again = Search(tmp_path, recipe)
    printed = again.output()
    assert again.process.returncode == 0, printed
    for trial in again.run.trials():
        assert trial.record.status == Status.FINISHED
        epochs = trial.folder.epochs()
        assert epochs.epoch.tolist() == list(range(1, 15))
        if trial.record.task == "inactive":  # of 48 images, the middle of the third batch of 16
            rates = [learning_rate(Config(**every_option["default"]), epoch, 14, 40 / 48) for epoch in epochs.epoch]
            assert epochs.lr.tolist() == pytest.approx(rates)
        known = before[trial.folder.name]  # these epochs are not trained again
        assert epochs[: len(known)].time.tolist() == known.time.tolist()


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_worker_is_replaced_and_its_trial_resumes_from_its_last_epoch(cells: Path, tmp_path: Path) -> None:
    search, printed = search_whose_worker_is_killed(cells, tmp_path, max_epochs=5)
    assert search.process.returncode == 0, printed
    (trial,) = search.run.trials()
    assert trial.folder.epochs().epoch.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_trial_that_crashes_too_often_fails_with_its_reason(cells: Path, tmp_path: Path) -> None:
    search, printed = search_whose_worker_is_killed(cells, tmp_path, max_epochs=30, max_failures=0)
    assert search.process.returncode == 1, printed
    assert "every trial of task 'crack' failed:\n    crack-0000: failed: " in printed
    assert "Traceback" not in printed
    (trial,) = search.run.trials()
    assert "worker process has died" in trial.record.reason


@pytest.mark.slow
def test_a_trial_that_diverges_ends_with_its_reason(cells: Path, tmp_path: Path) -> None:
    recipe = plain_recipe(cells, tmp_path)
    wild = recipe["tasks"]["crack"]["default"] | {"lr": 1e38, "optimizer": "sgd", "schedule": "constant"}
    recipe["tasks"]["crack"] = {"trials": 1, "default": wild}
    recipe["tasks"]["inactive"] = recipe["tasks"]["inactive"] | {"trials": 1}
    search = Search(tmp_path, recipe)
    printed = search.output()
    assert search.process.returncode == 1, printed
    assert "crack-0000: diverged: the training loss became" in printed
    assert search.run.trial("inactive", 0).record().status == Status.FINISHED


@pytest.mark.slow
@pytest.mark.long
def test_a_time_budget_ends_a_search_in_the_middle_of_its_trials_and_a_larger_one_resumes_it(
    cells: Path, tmp_path: Path
) -> None:
    def recipe(budget: float) -> dict[str, Any]:
        how = {"max_epochs": 100, "scheduler": "none", "time_budget": budget}
        plain = plain_recipe(cells, tmp_path, search=how)
        return plain | {"tasks": {"crack": plain["tasks"]["crack"] | {"trials": 1}}}

    for budget in (20, 45, 75, 110):  # on a busy machine, no epoch may end within the first ones
        search = Search(tmp_path, recipe(budget))
        printed = search.output()
        assert search.process.returncode == 0, printed
        assert "The time budget is spent" in printed
        spent = json.loads((search.run.path / "search.json").read_text())["seconds"]  # without Ray's start
        assert spent < budget + 15
        (trial,) = search.run.trials()
        assert trial.record.status == Status.UNFINISHED
        if len(before := trial.folder.epochs()):
            break
    assert len(before), "no epoch ended within any of the budgets: the machine is too busy for this test"
    again = Search(tmp_path, recipe(1000))
    printed = again.output()
    assert again.process.returncode == 0, printed
    assert trial.folder.record().status == Status.FINISHED
    epochs = trial.folder.epochs()
    assert epochs.epoch.tolist() == list(range(1, 101))
    assert epochs.time[: len(before)].tolist() == before.time.tolist()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder that holds 6 MB."""
    if os.geteuid():
        assert "CI" not in os.environ, "only root may mount"
        pytest.skip("only root may mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_search_with_a_message_and_with_more_room_it_resumes(
    cells: Path, tmp_path: Path, small_disk: Path
) -> None:
    search = Search(tmp_path, plain_recipe(cells, small_disk))
    printed = search.output()
    assert search.process.returncode == 1, printed
    assert "No space left on device" in printed
    assert "Traceback" not in printed
    assert not any(trial.record.status.is_lost for trial in search.run.trials())
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    again = Search(tmp_path, plain_recipe(cells, small_disk))
    printed = again.output()
    assert again.process.returncode == 0, printed
    assert Counter(trial.record.task for trial in again.run.trials()) == {"crack": 3, "inactive": 3}


def search_whose_worker_is_killed(cells: Path, folder: Path, **search: Any) -> tuple[Search, str]:
    """Search with one trial whose worker is killed after two epochs; return the ended search, and what it printed."""
    recipe = plain_recipe(cells, folder, search={"scheduler": "none", "max_concurrent": 1} | search)
    recipe["tasks"] = {"crack": recipe["tasks"]["crack"] | {"trials": 1}}
    running = Search(folder, recipe)
    running.wait_for_epochs(2)
    signal_workers(running.process.pid, signal.SIGKILL)
    return running, running.output()


def signal_workers(driver: int, number: signal.Signals) -> None:
    """Send a signal to the processes that run trials below this driver."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            is_ours = b"ray::ImplicitFunc" in title or b"train_trial" in title
            if is_ours and driver in ancestors(int(process.name)):
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert found, "no worker found"
    for process_id in found:
        os.kill(process_id, number)
