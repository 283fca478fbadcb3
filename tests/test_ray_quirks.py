"""What the pinned Ray does and says, where this project depends on its internals."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.tune.execution.tune_controller import _get_max_pending_trials
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher, SearchGenerator

from ovr_ray import ray_quirks

RAY = Path(ray.__file__).parent


class Seen(tune.Callback):
    """Keeps Tune's trials."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.trials.append(trial)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def fail_after_an_epoch(config: dict[str, Any]) -> None:
    tune.report(ray_quirks.with_step({"epoch": 5, "score": 0.5, "device": "cpu"}, step=5))
    raise ValueError("the second epoch\nis impossible")


@pytest.fixture(scope="module")
def crashed(ray_session: None) -> Iterator[Trial]:
    """A trial that reported one epoch and raised."""
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder, ray_quirks.environment(ray_quirks.ON_START):
        tune.Tuner(
            fail_after_an_epoch,
            tune_config=tune.TuneConfig(trial_dirname_creator=lambda trial: "crash"),
            run_config=tune.RunConfig(name="trials", storage_path=folder, callbacks=[seen], verbose=0),
        ).fit()
        yield seen.trials[0]


def test_variables_are_set_within_the_block_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVR_THEIRS", "theirs")
    monkeypatch.delenv("OVR_OURS", raising=False)
    variables = {"OVR_THEIRS": "ours", "OVR_OURS": "ours"}
    with ray_quirks.environment(variables):
        assert (os.environ["OVR_THEIRS"], os.environ["OVR_OURS"]) == ("ours", "ours")
    with ray_quirks.environment(variables, keep_users=True):
        assert (os.environ["OVR_THEIRS"], os.environ["OVR_OURS"]) == ("theirs", "ours")
    assert os.environ["OVR_THEIRS"] == "theirs"
    assert "OVR_OURS" not in os.environ


def test_tune_reads_how_many_trials_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    search = SearchGenerator(Searcher(metric="score", mode="max"))
    assert _get_max_pending_trials(search) == 1
    with ray_quirks.environment(ray_quirks.pending_trials(7)):
        assert _get_max_pending_trials(search) == 7


@pytest.mark.parametrize("variable", [*ray_quirks.ON_START, *ray_quirks.DURING_SEARCH])
def test_ray_still_reads_a_variable(variable: str) -> None:
    folders = (RAY / "tune", RAY / "train", RAY / "air")
    assert any(variable in file.read_text() for folder in folders for file in folder.rglob("*.py"))


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (ray_quirks.NODE_LOST, "core/src/ray/gcs/gcs_server"),
        (ray_quirks.LOW_MEMORY, "core/src/ray/raylet/raylet"),
        (ray_quirks.SLOW_START, "_private/node.py"),
    ],
)
def test_ray_still_uses_these_words(words: str, file: str) -> None:
    assert words.encode() in (RAY / file).read_bytes()


def test_a_job_has_the_variable_that_in_job_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ray_quirks.in_job()
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert ray_quirks.in_job()


def test_a_trace_is_found_and_gives_its_reason(crashed: Trial) -> None:
    failure = ray_quirks.last_failure(crashed.error_file)
    assert "fail_after_an_epoch" in failure
    assert ray_quirks.reason_of(failure) == "ValueError: the second epoch\nis impossible"
    assert not ray_quirks.is_node_loss(failure)
    in_storage = Path(str(crashed.storage.experiment_fs_path)) / "crash"
    assert "is impossible" in ray_quirks.trace_file(crashed, in_storage).read_text()


def test_a_lost_node_and_a_missing_trace_have_reasons() -> None:
    assert ray_quirks.reason_of(f"ActorDiedError: … because {ray_quirks.NODE_LOST}.") == ray_quirks.NODE_LOST
    assert ray_quirks.reason_of(ray_quirks.last_failure(None)) == "its worker died"
    assert len(ray_quirks.reason_of("ValueError: " + "x" * 10_000)) == ray_quirks.LONGEST_REASON


def test_tune_keeps_the_step_and_its_own_fields_are_no_numbers_of_the_trial(crashed: Trial) -> None:
    assert crashed.last_result["timesteps_total"] == 5
    numbers = ray_quirks.numbers_of(crashed.last_result, step=5)
    assert numbers == {"epoch": 5, "score": 0.5, "training_iteration": 5}


def test_the_history_that_tune_keeps_can_be_dropped(crashed: Trial) -> None:
    assert crashed.metric_analysis["score"]["max"] == 0.5
    ray_quirks.forget_history(crashed)
    assert not crashed.metric_analysis
    assert not crashed.metric_n_steps


@pytest.mark.usefixtures("ray_session")
def test_a_lean_tune_reads_no_results_and_needs_no_new_process_for_a_trial(tmp_path: Path) -> None:
    def score(config: dict[str, Any]) -> None:
        tune.report({"score": 0.5, "fresh": "PL_DISABLE_FORK" in os.environ})

    def fitted() -> tuple[int, bool]:
        run_config = tune.RunConfig(name="trials", storage_path=str(tmp_path), verbose=0)
        (found,) = tune.Tuner(score, run_config=run_config).fit()
        return found.metrics_dataframe is not None, found.metrics["fresh"]

    assert fitted() == (True, True)
    with ray_quirks.lean_tune():
        assert fitted() == (False, False)


def test_asha_needs_nothing_of_a_trial_but_its_identifier() -> None:
    asha = ASHAScheduler(time_attr="epoch", metric="score", mode="max", max_t=9, grace_period=1, reduction_factor=2)
    decisions = []
    for name, score in (("a", 0.9), ("b", 0.1)):
        trial = ray_quirks.stand_in(name)
        asha.on_trial_add(None, trial)
        decisions.append(asha.on_trial_result(None, trial, {"epoch": 1, "score": score}))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


@pytest.mark.usefixtures("ray_session")
def test_a_task_knows_what_it_was_assigned() -> None:
    asked = ray.remote(num_cpus=2, num_gpus=0.5)(ray_quirks.assigned).remote()
    assert ray.get(asked) == (2, 0.5)


def test_sockets_lie_as_deep_below_the_temporary_folder_as_is_assumed(ray_session: None) -> None:
    node = ray._private.worker._global_node
    below = node.plasma_store_socket_name.removeprefix(node.get_temp_dir_path())
    longest = ray_quirks.LONGEST_SOCKET - len(f"/ray{below}")
    assert [ray_quirks.too_long_for_sockets("/" + "x" * (longest + more - 1)) for more in (0, 3)] == [0, 3]


@pytest.mark.parametrize("names", [["TMPDIR"], ["TMPDIR", "RAY_TMPDIR"]])
def test_rays_temporary_folder_is_where_the_variables_say(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_default_ray_temp_dir

    for name in ray_quirks.TEMPORARY:
        monkeypatch.delenv(name, raising=False)
    for name in names:
        monkeypatch.setenv(name, f"/{name}")
    assert get_default_ray_temp_dir() == f"/{next(name for name in ray_quirks.TEMPORARY if name in names)}/ray"
