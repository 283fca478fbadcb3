"""Searches that know an earlier run's trials: most without a cluster, the last ones real."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

import ovr_ray
from ovr_ray.commands.cli import app
from ovr_ray.errors import BadInput
from ovr_ray.joint import choose
from ovr_ray.recipe import Config, Recipe
from ovr_ray.runs import RunFolder, Status
from ovr_ray.search.ledger import Trial
from ovr_ray.search.warm_start import WarmStart, begin_with
from tests.search.driver import Driver, Make, end_plainly, run_down, unlimited
from tests.support import copy_run, rows

BEST = 4e-3


def add(run: RunFolder, task: str, number: int, status: Status = Status.FINISHED, **config: Any) -> None:
    """Add a trial as a search leaves it; the nearer its rate is to :data:`BEST`, the higher is its score."""
    given = Config(lr=10 ** (-4 + number / 8)).model_copy(update=config)
    Trial(task, number, given, run.trial(task, number), status).save()
    score = 0.99 - abs(math.log10(given.lr / BEST)) / 4
    epochs = [{"epoch": 1, "val_average_precision": score, "val_f1": 0.1}, {"epoch": 2, "val_average_precision": 0.2}]
    run.trial(task, number).write_epochs(epochs)


@pytest.fixture
def old(make_recipe: Make, tmp_path: Path) -> RunFolder:
    """Return a run with 16 trials of crack and of another task, and none of inactive."""
    tasks = {"crack": make_recipe().dump()["tasks"]["crack"], "fault": {"column": "inactive"}}
    run = Driver(make_recipe(name="old", tasks=tasks)).run
    for number in range(16):
        add(run, "crack", number)
        add(run, "fault", number)
    return run


def begin(recipe: Recipe, *given: Any) -> tuple[Driver, str]:
    """Begin or resume a search with this warm start; return the search, and what is printed."""
    console = Console(record=True, width=300)
    run = RunFolder.of(recipe)
    known = begin_with(run, recipe, given, console)
    run.path.mkdir(parents=True, exist_ok=True)
    known.save(run)
    return Driver(recipe, slots=1), console.export_text()


def rates(driver: Driver, task: str) -> list[float]:
    return [lr for name, _, lr in sorted(run_down(driver)) if name == task]


def test_the_default_comes_first_then_the_best_prior_trial_and_draws_are_near_it(
    make_recipe: Make, old: RunFolder
) -> None:
    recipe = unlimited(make_recipe, trials=8)
    driver, printed = begin(recipe, old.path)
    warm = rates(driver, "crack")
    assert warm[0] == 1e-3
    assert warm[1] == 10 ** (-4 + 13 / 8)  # the nearest to BEST
    cold = rates(Driver(recipe.model_copy(update={"name": "cold"}), slots=1), "crack")
    off = [sum(abs(math.log10(lr / BEST)) for lr in drawn[2:]) for drawn in (warm, cold)]
    assert off[0] < off[1] / 2
    assert f"warm start: crack: 16 of 16 trials of {old.path}, task crack" in printed
    assert f"warm start: inactive: {old.path} has no such task" in printed


def test_the_best_prior_trial_comes_first_if_the_recipe_has_no_default(make_recipe: Make, old: RunFolder) -> None:
    tasks = {"crack": {"trials": 2, "space": {"lr": {"loguniform": [1e-4, 1e-2]}}}}
    driver, _ = begin(make_recipe(tasks=tasks), old.path)
    driver.fill()
    assert next(iter(driver.live.values()))["lr"] == 10 ** (-4 + 13 / 8)


def test_another_tasks_trials_can_be_asked_for(make_recipe: Make, old: RunFolder) -> None:
    driver, printed = begin(make_recipe(), f"{old.path}:inactive=fault")
    known = WarmStart.read(driver.run)
    assert (len(known.of("crack")), len(known.of("inactive"))) == (0, 16)
    assert "inactive: 16 of 16 trials" in printed
    assert "crack" not in printed


def test_trials_that_are_not_used_are_counted_with_their_reasons(make_recipe: Make, old: RunFolder) -> None:
    add(old, "crack", 16, status=Status.DIVERGED)
    add(old, "crack", 17, status=Status.UNFINISHED)
    add(old, "crack", 18, unfreeze_epoch=1)  # a choice of 0 and 2
    task = make_recipe().dump()["tasks"]["crack"] | {"trials": 20}
    task["space"] = task["space"] | {"lr": {"loguniform": [2e-4, 2e-2]}}
    driver, printed = begin(make_recipe(tasks={"crack": task}), old.path)
    assert len(WarmStart.read(driver.run).trials) == 13
    assert "13 of 19 trials of" in printed
    reasons = "; 3 not: lr outside of the space; 1 not: diverged; 1 not: unfinished; 1 not: unfreeze_epoch outside"
    assert reasons in printed


def test_the_score_is_the_best_by_the_new_searchs_metric(make_recipe: Make, old: RunFolder) -> None:
    driver, _ = begin(make_recipe(search={"metric": "f1"}), old.path)
    assert {trial.score for trial in WarmStart.read(driver.run).trials} == {0.1}
    with_less, printed = begin(make_recipe(name="less", search={"metric": "f1_at_half"}), old.path)
    assert WarmStart.read(with_less.run).trials == []
    assert "0 of 16 trials" in printed
    assert "16 not: val_f1_at_half was not measured" in printed


def test_a_null_in_a_prior_config_is_replaced_by_what_its_recipe_said(make_recipe: Make, old: RunFolder) -> None:
    task = make_recipe().dump()["tasks"]["crack"] | {"space": {"rotation": {"uniform": [0, 90]}}}
    driver, _ = begin(make_recipe(tasks={"crack": task}), old.path)
    assert {trial.config.rotation for trial in WarmStart.read(driver.run).trials} == {0}


def test_a_resumed_search_makes_the_same_draws_after_the_old_run_is_deleted(make_recipe: Make, old: RunFolder) -> None:
    recipe = unlimited(make_recipe, trials=6)
    undisturbed = run_down(begin(recipe.model_copy(update={"name": "undisturbed"}), old.path)[0])
    seen = []
    for session in range(4):
        driver, printed = begin(recipe, old.path)
        assert ("warm start" in printed) == (session == 0)  # it resumes as it began
        shutil.rmtree(old.path, ignore_errors=True)
        driver.fill()
        trial_id, config = next(iter(driver.live.items()))
        seen.append((config["task"], config["number"], config["lr"]))
        end_plainly(driver, trial_id)
        driver.fill()
    assert seen + run_down(Driver(recipe, slots=1)) == undisturbed


def test_a_search_that_has_begun_keeps_its_warm_start_and_says_so(
    make_recipe: Make, old: RunFolder, tmp_path: Path
) -> None:
    recipe = make_recipe()
    driver, _ = begin(recipe, old.path)
    driver.fill()
    before = driver.run.warm_start.read_text()
    other = f"{tmp_path / 'gone'}:crack=fault"
    _, printed = begin(recipe, other)
    assert f"warm start: tiny began with {old.path}, and keeps to that; {other} needs another recipe name" in printed
    assert driver.run.warm_start.read_text() == before
    assert begin(recipe)[1] == ""
    cold, _ = begin(make_recipe(name="cold"))
    cold.fill()
    assert "cold began without one" in begin(make_recipe(name="cold"), old.path)[1]
    assert not cold.run.warm_start.exists()


def test_before_the_first_trial_the_warm_start_may_change(make_recipe: Make, old: RunFolder) -> None:
    driver, _ = begin(make_recipe(), old.path)
    begin(make_recipe())
    assert WarmStart.read(driver.run).trials == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "nowhere: is not a run folder"),
        ("old:crak=fault", r"no such task 'crak'\n    -> tasks: crack, inactive"),
        ("old:crack=defect", "has no task defect\n    -> it has crack, fault: RUN:TASK=OTHER"),
    ],
)
def test_a_warm_start_without_a_run_or_a_task_is_refused(
    given: str, message: str, make_recipe: Make, old: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        begin(make_recipe(), f"{tmp_path}/{given}")


def test_a_run_with_none_of_the_tasks_is_refused(make_recipe: Make, old: RunFolder) -> None:
    task = make_recipe().dump()["tasks"]["crack"]
    with pytest.raises(BadInput, match="has no task inactive\n    -> it has crack, fault"):
        begin(make_recipe(tasks={"inactive": task}), old.path)


def test_the_command_line_passes_the_warm_start_on(make_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(make_recipe().dump()))
    result = CliRunner().invoke(app, ["tune", str(tmp_path / "recipe.yaml"), "--warm-start", f"{tmp_path}/nowhere"])
    assert isinstance(result.exception, BadInput)
    assert "nowhere: is not a run folder" in str(result.exception)


@pytest.mark.slow
def test_a_search_from_an_old_runs_trials_and_body_has_winners_of_its_own(
    make_recipe: Make, finished: RunFolder, tmp_path: Path
) -> None:
    before = copy_run(finished, tmp_path / "before")
    for trial in before.trials():  # no trial of the new search can be as good
        trial.folder.write_epochs(rows(trial.folder.epochs().assign(val_average_precision=1.0)))
    best = choose(finished, finished.recipe())["crack"]
    task = make_recipe().dump()["tasks"]["crack"] | {"trials": 2}
    task["default"]["weights"] = str(best.checkpoint)
    recipe = make_recipe(tasks={"crack": task}, search={"max_epochs": 1})
    ovr_ray.run(recipe, warm_start=[before.path])
    run = RunFolder.of(recipe)
    assert len(WarmStart.read(run).trials) == 3
    assert json.loads(run.warm_start.read_text())["from"] == [str(before.path)]
    assert [trial.folder.name for trial in run.trials()] == ["crack-0000", "crack-0001"]
    configs = [trial.record.config for trial in run.trials()]
    assert configs[0].lr == 1e-3
    assert {config.weights for config in configs} == {str(best.checkpoint)}
    winner = choose(run, run.recipe())["crack"]
    assert winner.checkpoint.is_relative_to(run.path)
    counts = ovr_ray.status(run)
    assert counts.loc["crack", "begun"] == 2
    assert counts.loc["crack", "best"] == winner.card.metrics["val_average_precision"]


def test_a_checkpoint_of_another_backbone_is_refused_before_anything_trains(
    make_recipe: Make, finished: RunFolder
) -> None:
    task = make_recipe().dump()["tasks"]["crack"]
    task["default"] |= {"weights": str(choose(finished, finished.recipe())["crack"].checkpoint), "backbone": "resnet18"}
    with pytest.raises(BadInput, match=r"tasks\.crack: backbone 'resnet18', .*is a checkpoint of backbone 'shuffle"):
        ovr_ray.tune(make_recipe(tasks={"crack": task}))
