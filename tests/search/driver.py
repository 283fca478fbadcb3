"""The searcher and the scheduler driven by hand, as Tune would, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas as pd
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from ovr_ray.recipe import Recipe
from ovr_ray.runs import RunFolder
from ovr_ray.search.ledger import Ledger
from ovr_ray.search.messages import end_report, epoch_report
from ovr_ray.search.multiplex import MultiplexScheduler, MultiplexSearcher
from ovr_ray.training import EarlyEnd
from tests.support import rows

Make = Callable[..., Recipe]


class Driver:
    """Plays Tune's part: asks for trials, reports epochs, ends trials. Writes the epochs that a trial would write."""

    def __init__(self, recipe: Recipe, slots: int = 4, tasks: tuple[str, ...] = ()) -> None:
        self.run = RunFolder.of(recipe)
        self.run.begin(recipe, "fingerprint", pd.DataFrame({"filename": [], "part": []}))
        self.ledger = Ledger(self.run, recipe, tasks or tuple(recipe.tasks))
        self.scheduler = MultiplexScheduler(self.ledger)
        self.searcher = MultiplexSearcher(self.ledger, lambda: slots)
        self.live: dict[str, dict[str, Any]] = {}
        self._ids = 0

    def fill(self) -> Any:
        """Start trials until there is no slot or no trial left; return the searcher's last answer."""
        while True:
            self._ids += 1
            config = self.searcher.suggest(f"id{self._ids}")
            if not isinstance(config, dict):
                return config
            self.live[f"id{self._ids}"] = config
            self.scheduler.on_trial_add(None, stand_in(config))

    def epoch(self, trial_id: str, score: float) -> str:
        """Report one more epoch of a trial, and do what the scheduler decides."""
        config = self.live[trial_id]
        folder = self.run.trial(config["task"], config["number"])
        before = rows(folder.epochs())
        self._ids += 1
        row = {"epoch": len(before) + 1, "val_average_precision": score, "time": float(self._ids)}
        folder.write_epochs([*before, row])
        report = epoch_report(row)
        decision = self.scheduler.on_trial_result(None, stand_in(config), report)
        if decision == TrialScheduler.STOP:
            self.searcher.on_trial_complete(trial_id, report)
            del self.live[trial_id]
        else:
            self.searcher.on_trial_result(trial_id, report)
        return decision

    def end_early(self, trial_id: str, end: EarlyEnd) -> None:
        """Report an early end; Tune repeats a trial's last report when the trial ends."""
        config, report = self.live.pop(trial_id), end_report(end)
        assert self.scheduler.on_trial_result(None, stand_in(config), report) == TrialScheduler.CONTINUE
        self.searcher.on_trial_result(trial_id, report)
        self.scheduler.on_trial_complete(None, stand_in(config), report)
        self.searcher.on_trial_complete(trial_id, report | {"done": True})

    def crash(self, trial_id: str, reason: str) -> None:
        """Report a crash as Tune does: to the scheduler first."""
        error_file = self.run.path / "error.txt"
        error_file.write_text(f"Failure # 1 (occurred at 2026-11-24_20-00-00)\n{reason}\n")
        self.scheduler.on_trial_error(None, stand_in(self.live.pop(trial_id), str(error_file)))
        self.searcher.on_trial_complete(trial_id, error=True)

    def finish(self, trial_id: str, score: float = 0.5) -> None:
        while trial_id in self.live:
            self.epoch(trial_id, score)


def stand_in(config: dict[str, Any], error_file: str | None = None) -> TuneTrial:
    """Return what the scheduler uses of one of Tune's trials."""
    trial: Any = SimpleNamespace(config=config, error_file=error_file)
    return trial


def unlimited(make_recipe: Make, trials: int = 8, **search: Any) -> Recipe:
    """Return a recipe without early stopping, with this many trials per task of two epochs each."""
    recipe = make_recipe(search={"scheduler": "none", "max_epochs": 2, "grace_epochs": 1} | search)
    return with_trials(recipe, trials)


def with_trials(recipe: Recipe, trials: int) -> Recipe:
    tasks = {name: task.model_copy(update={"trials": trials}) for name, task in recipe.tasks.items()}
    return recipe.model_copy(update={"tasks": tasks})


def run_down(driver: Driver) -> list[tuple[str, int, float]]:
    """Run every trial to its end; return task, number and learning rate in order."""
    seen = []
    while driver.fill() is None or driver.live:
        trial_id, config = next(iter(driver.live.items()))
        seen.append((config["task"], config["number"], config["lr"]))
        end_plainly(driver, trial_id)
    return seen


def end_plainly(driver: Driver, trial_id: str) -> None:
    """Report two epochs and the end of a trial; Tune repeats the last report then."""
    for _ in range(2):
        driver.epoch(trial_id, 0.5)
    driver.searcher.on_trial_complete(trial_id, {"epoch": 2, "val_average_precision": 0.5})
    del driver.live[trial_id]
