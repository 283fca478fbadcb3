"""The searcher and the scheduler, driven by hand as Tune would, without a cluster."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ovr_ray.errors import RunFailed
from ovr_ray.recipe import Config, Recipe, Search, Task
from ovr_ray.runs import RunFolder, Status
from ovr_ray.search.multiplex import TaskSearch, _scheduler
from ovr_ray.search.rules import WAVE
from ovr_ray.search.space import TaskSpace
from ovr_ray.training import Cause, EarlyEnd
from tests.search.driver import Driver, Make, end_plainly, run_down, unlimited, with_trials

NODE_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tactor_id: 4cbf8ef6b5d2d1f2e6f7c31301000000
\tip: 127.0.0.1
The actor died because its node has died. Node Id: 2e9cbbb0
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""
"""The message of Ray 2.60."""


def test_budgets_are_exact(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe, trials=5))
    assert Counter(task for task, _, _ in run_down(driver)) == {"crack": 5, "inactive": 5}
    assert driver.fill() == Searcher.FINISHED
    assert driver.ledger.complete()
    assert [trial.record.status for trial in driver.run.trials()] == [Status.FINISHED] * 10


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_every_unfinished_task_has_its_share_of_the_slots(slots: int, make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe, trials=9), slots)
    while driver.fill() is None:
        unfinished = {task for task in driver.ledger.tasks if driver.ledger.left(task)}
        assert len(driver.live) == slots or not unfinished
        if len(unfinished) == 2:
            assert all(driver.ledger.live(task) >= slots // 2 for task in unfinished)
        end_plainly(driver, next(iter(driver.live)))


def test_a_complete_task_leaves_its_slots_to_the_others(make_recipe: Make) -> None:
    recipe = unlimited(make_recipe)
    tasks = dict(recipe.tasks)
    tasks["crack"] = tasks["crack"].model_copy(update={"trials": 1})
    driver = Driver(recipe.model_copy(update={"tasks": tasks}), slots=4)
    driver.fill()
    assert (driver.ledger.live("crack"), driver.ledger.live("inactive")) == (1, 3)


def test_the_first_trial_of_every_task_is_the_default(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe))
    driver.fill()
    first = [config for config in driver.live.values() if config["number"] == 0]
    assert [config["lr"] for config in first] == [1e-3, 1e-3]


def test_random_draws_do_not_depend_on_interruptions(make_recipe: Make) -> None:
    recipe = unlimited(make_recipe, searcher="random")
    undisturbed = run_down(Driver(recipe.model_copy(update={"name": "undisturbed"})))
    seen = []
    for _ in range(4):  # killed with trials running, three times
        driver = Driver(recipe, slots=2)
        driver.fill()
        for trial_id in list(driver.live)[:2]:
            config = driver.live[trial_id]
            seen.append((config["task"], config["number"], config["lr"]))
            end_plainly(driver, trial_id)
        driver.fill()
    seen += run_down(Driver(recipe, slots=2))
    assert sorted(seen) == sorted(undisturbed)


def test_an_interrupted_trial_is_handed_out_again_and_counts_once(make_recipe: Make) -> None:
    recipe = unlimited(make_recipe, trials=2)
    killed = Driver(recipe, slots=2)
    killed.fill()
    killed.epoch(next(iter(killed.live)), 0.7)
    resumed = Driver(recipe, slots=2)
    resumed.fill()
    assert list(resumed.live.values()) == list(killed.live.values())
    assert resumed.ledger.trials["crack"][0].scores == {1: 0.7}
    run_down(resumed)
    assert len(resumed.run.trials()) == 4


def test_one_task_alone_leaves_the_others_budget(make_recipe: Make) -> None:
    recipe = unlimited(make_recipe, trials=2)
    assert {task for task, _, _ in run_down(Driver(recipe, tasks=("inactive",)))} == {"inactive"}
    assert {task for task, _, _ in run_down(Driver(recipe))} == {"crack"}


def test_more_trials_may_be_added_to_a_finished_search(make_recipe: Make) -> None:
    recipe = unlimited(make_recipe, trials=2)
    run_down(Driver(recipe))
    more = run_down(Driver(with_trials(recipe, 3)))
    assert [(task, number) for task, number, _ in more] == [("crack", 2), ("inactive", 2)]


def test_each_task_is_stopped_early_by_its_own_rungs(make_recipe: Make) -> None:
    recipe = with_trials(make_recipe(search={"max_epochs": 4, "grace_epochs": 1, "reduction": 2}), 4)
    driver = Driver(recipe, slots=8)
    driver.fill()
    scores = {"crack": [0.9, 0.8, 0.7, 0.6], "inactive": [0.4, 0.3, 0.2, 0.1]}
    decisions = {}
    for trial_id, config in dict(driver.live).items():
        decisions[config["task"], config["number"]] = driver.epoch(trial_id, scores[config["task"]][config["number"]])
    for task in scores:
        assert decisions[task, 0] == TrialScheduler.CONTINUE
        assert decisions[task, 3] == TrialScheduler.STOP
    assert decisions["inactive", 0] == TrialScheduler.CONTINUE  # though worse than any crack


def test_rungs_survive_a_restart(make_recipe: Make) -> None:
    recipe = with_trials(make_recipe(search={"max_epochs": 4, "grace_epochs": 1, "reduction": 2}), 4)
    killed = Driver(recipe, slots=8)
    killed.fill()
    for trial_id, config in dict(killed.live).items():
        if config["number"] < 3:
            killed.epoch(trial_id, 0.9)
    resumed = Driver(recipe, slots=8)
    resumed.fill()
    last = next(i for i, config in resumed.live.items() if (config["task"], config["number"]) == ("crack", 3))
    assert resumed.epoch(last, 0.5) == TrialScheduler.STOP


def test_a_trial_that_was_stopped_as_the_search_was_killed_is_not_run_again(make_recipe: Make) -> None:
    recipe = with_trials(make_recipe(search={"max_epochs": 4, "grace_epochs": 1, "reduction": 2}), 2)
    killed = Driver(recipe, slots=8)
    killed.fill()
    for trial_id, config in dict(killed.live).items():
        killed.epoch(trial_id, 0.9 - config["number"] / 2)
    stopped = killed.ledger.trials["crack"][1]
    assert stopped.status == Status.STOPPED
    killed.ledger.end(stopped, Status.UNFINISHED)  # the record was not yet written
    assert Driver(recipe).ledger.trials["crack"][1].status == Status.STOPPED


def test_a_crashed_trial_is_handed_out_again_until_it_crashed_too_often(make_recipe: Make) -> None:
    recipe = unlimited(make_recipe, trials=1, max_failures=2)
    for crashes in (1, 2, 3):
        driver = Driver(recipe)  # crashes are counted over sessions
        driver.fill()
        assert sorted((config["task"], config["number"]) for config in driver.live.values()) == [
            ("crack", 0),
            ("inactive", 0),
        ]
        for trial_id in list(driver.live):
            driver.crash(trial_id, "its worker process has died")
        records = [trial.record for trial in driver.run.trials()]
        assert {record.failures for record in records} == {crashes}
        assert {record.status for record in records} == {Status.FAILED if crashes == 3 else Status.UNFINISHED}
        assert "its worker process has died" in records[0].reason
    assert Driver(recipe).fill() == Searcher.FINISHED


def test_a_crash_does_not_count_if_the_trials_machine_was_lost(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe, trials=1, max_failures=0), slots=1)
    for _ in range(5):
        driver.fill()
        driver.crash(next(iter(driver.live)), NODE_DIED)
    assert {trial.record.failures for trial in driver.run.trials()} == {0}
    assert {trial.record.reason for trial in driver.run.trials()} == {"its node has died"}
    assert not driver.ledger.complete()


def test_a_crashed_trial_resumes_within_the_same_search(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe, trials=2), slots=1)
    driver.fill()
    (first,) = driver.live
    config = driver.live[first]
    driver.epoch(first, 0.5)
    driver.crash(first, "its worker process has died")
    driver.fill()
    while driver.live:
        trial_id, again = next(iter(driver.live.items()))
        if (again["task"], again["number"]) == (config["task"], config["number"]):
            assert again == config
        end_plainly(driver, trial_id)
        driver.fill()
    assert driver.ledger.complete()
    assert Counter(trial.record.task for trial in driver.run.trials()) == {"crack": 2, "inactive": 2}


def test_a_full_disk_ends_the_search_and_costs_no_trial(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe), slots=2)
    driver.fill()
    full, other = driver.live
    driver.end_early(full, EarlyEnd(Cause.UNWRITABLE, "/runs/tiny/trials: No space left on device"))
    assert driver.fill() == Searcher.FINISHED
    assert driver.epoch(other, 0.5) == TrialScheduler.STOP
    assert isinstance(driver.ledger.refusal, RunFailed)
    assert "No space left on device; make room there" in str(driver.ledger.refusal)
    assert {trial.record.status for trial in driver.run.trials()} == {Status.UNFINISHED}


def test_a_trial_too_large_for_the_memory_fails_at_once_with_its_config(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe, trials=1), slots=1)
    driver.fill()
    (trial_id,) = driver.live
    reason = "out of memory on cuda with batches in 16 micro-batches: {'backbone': 'resnet101'}"
    driver.end_early(trial_id, EarlyEnd(Cause.OUT_OF_MEMORY, reason))
    record = driver.run.trial("crack", 0).record()
    assert (record.status, record.reason) == (Status.FAILED, reason)


def test_a_report_without_an_epoch_changes_no_score(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe))
    driver.fill()
    trial_id = next(iter(driver.live))
    driver.epoch(trial_id, 0.5)
    driver.searcher.on_trial_result(trial_id, {"done": True})
    assert driver.ledger.trials["crack"][0].scores == {1: 0.5}


def test_a_diverged_trial_keeps_its_reason(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe, trials=1), slots=1)
    driver.fill()
    trial_id = next(iter(driver.live))
    driver.epoch(trial_id, 0.5)
    driver.end_early(trial_id, EarlyEnd(Cause.DIVERGED, "loss nan"))
    record = driver.run.trial("crack", 0).record()
    assert (record.status, record.reason) == (Status.DIVERGED, "loss nan")


def test_a_spent_time_budget_starts_nothing_and_leaves_trials_resumable(make_recipe: Make) -> None:
    recipe = unlimited(make_recipe, time_budget=1000)
    driver = Driver(recipe, slots=2)
    driver.fill()
    driver.ledger.clock._start -= 2000
    assert driver.fill() == Searcher.FINISHED
    trial_id = next(iter(driver.live))
    assert driver.epoch(trial_id, 0.5) == TrialScheduler.STOP
    assert driver.run.trial("crack", 0).record().status == Status.UNFINISHED
    with driver.ledger.clock.ticking():
        pass
    assert Driver(recipe).ledger.out_of_time
    longer = recipe.model_copy(update={"search": recipe.search.model_copy(update={"time_budget": 5000})})
    assert not Driver(longer).ledger.out_of_time


def test_a_node_that_does_not_see_storage_ends_the_search_and_costs_no_trial(make_recipe: Make) -> None:
    driver = Driver(unlimited(make_recipe), slots=2)
    driver.fill()
    blind, other = driver.live
    task = driver.live[blind]["task"]
    driver.end_early(blind, EarlyEnd(Cause.UNSEEN, "node w2 does not see /shared"))
    assert driver.fill() == Searcher.FINISHED
    assert "node w2 does not see /shared" in str(driver.ledger.refusal)
    driver.epoch(other, 0.5)
    again = Driver(unlimited(make_recipe), slots=2)
    assert again.ledger.refusal is None
    assert len(again.ledger.trials[task]) == 1
    assert len(again.ledger.waiting(task)) == 1


def halved(make_recipe: Make, name: str, trials: int = 30, max_epochs: int = 4, **search: Any) -> Recipe:
    search |= {"scheduler": "halving", "max_epochs": max_epochs, "grace_epochs": 1, "reduction": 2}
    return with_trials(make_recipe(search=search), trials).model_copy(update={"name": name})


def advance(driver: Driver, trial_id: str) -> None:
    """Report an epoch, with a score that depends on the config and the epoch, and the end of a trial at its goal."""
    config = driver.live[trial_id]
    epoch = driver.ledger.trials[config["task"]][config["number"]].epoch + 1
    driver.epoch(trial_id, 1 / (1 + abs(config["lr"] - 2e-3)) + epoch / 1e5)
    if epoch == config["epochs"]:
        driver.searcher.on_trial_complete(trial_id)
        del driver.live[trial_id]


def outcome(run: RunFolder) -> list[tuple[str, Config, Status, list[float]]]:
    score = "val_average_precision"
    found = ((trial.record, trial.folder) for trial in run.trials())
    return [(folder.name, record.config, record.status, folder.epochs()[score].tolist()) for record, folder in found]


def test_halving_ends_the_same_with_any_number_of_slots_interrupted_or_not(make_recipe: Make) -> None:
    expected = None
    for slots, sessions in ((1, 1), (2, 3), (7, 1), (7, 4)):
        recipe = halved(make_recipe, f"slots{slots}-{sessions}", trials=3 * WAVE + 3)
        rng = random.Random(slots)
        for session in range(sessions):
            driver = Driver(recipe, slots)
            steps = 50 if session < sessions - 1 else 10_000  # killed after 50 epochs, with trials running
            while steps and (driver.fill() is None or driver.live):
                advance(driver, rng.choice(list(driver.live)))
                steps -= 1
        assert driver.ledger.complete()
        found = outcome(driver.run)
        expected = expected or found
        assert found == expected
    assert {status for _, _, status, _ in expected or []} == {Status.STOPPED, Status.FINISHED}


def test_tpe_draws_other_configs_than_random_once_it_knows_a_wave(make_recipe: Make) -> None:
    drawn = {}
    for searcher in ("random", "tpe"):
        driver = Driver(halved(make_recipe, searcher, trials=3 * WAVE + 3, searcher=searcher))
        while driver.fill() is None or driver.live:
            advance(driver, next(iter(driver.live)))
        drawn[searcher] = [trial.config.lr for trial in driver.ledger.trials["crack"]]
    same = [a == b for a, b in zip(*drawn.values(), strict=True)]
    assert all(same[: 3 * WAVE])
    assert not any(same[3 * WAVE :])


def test_the_best_trials_go_on_when_the_last_epoch_is_later_or_there_are_more_trials(make_recipe: Make) -> None:
    lengths = []
    for trials, max_epochs in ((4, 4), (4, 8), (8, 8)):
        driver = Driver(halved(make_recipe, "longer", trials, max_epochs))
        while driver.fill() is None or driver.live:
            advance(driver, next(iter(driver.live)))
        assert driver.ledger.complete()
        lengths.append(sorted((len(scores) for name, _, _, scores in outcome(driver.run) if "crack" in name)))
    assert lengths == [[1, 1, 2, 4], [1, 1, 2, 8], [1, 1, 1, 1, 2, 2, 4, 8]]


def test_an_unknown_searcher_is_refused() -> None:
    search = Search.model_construct(searcher="grid")  # type: ignore[arg-type]
    task = TaskSearch("crack", TaskSpace(Task(), image_size=32), search)
    with pytest.raises(AssertionError, match="grid"):
        task.ask(0)


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(AssertionError, match="median"):
        _scheduler(Search.model_construct(scheduler="median"))  # type: ignore[arg-type]
