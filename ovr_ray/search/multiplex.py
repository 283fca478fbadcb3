"""Every task at once behind one Tuner: a searcher and a scheduler per task, turns shared fairly.

Both are rebuilt from the run folder when a search is resumed: finished trials, and those of a warm start, are told to
Optuna again, recorded epochs to ASHA. Draws depend on the seed, the task, the trial's number and what Optuna knows by
then, not on how often the search was interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Config, Recipe, Search
from ovr_ray.run_folder import trial_name
from ovr_ray.search.ledger import Ledger, Trial
from ovr_ray.search.space import TaskSpace
from ovr_ray.search.warm_start import Seed, WarmStart
from ovr_ray.session import derived_seed

optuna.logging.set_verbosity(optuna.logging.WARNING)

NODE_LOST = "its node has died"
"""In Ray's words, of an actor whose machine is gone."""

MOST_OF_A_REASON = 500
"""Characters; the whole trace is in the trial's error.txt."""

STARTUP_TRIALS = 5
"""Random trials of a task before TPE has something to learn from."""


class TaskSearch:
    """One task's searcher: an Optuna study, asked and told.

    Parameters
    ----------
    task : str
    space : TaskSpace
    search : Search
    seeds : sequence of Seed
        Trials of earlier runs that it knows already.
    """

    def __init__(self, task: str, space: TaskSpace, search: Search, seeds: Sequence[Seed] = ()) -> None:
        self._task, self._space, self._search = task, space, search
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}
        for seed in seeds:
            self._add(seed.config, TrialState.COMPLETE, seed.score)
        self._first = [space.parameters(space.first())] if space.has_default or not seeds else []
        if seeds and (best := space.parameters(max(seeds, key=lambda seed: seed.score).config)) not in self._first:
            self._first.append(best)

    def ask(self, number: int) -> Config:
        """The config of trial ``number``: the recipe's default, the best that is known of earlier runs, then drawn."""
        self._study.sampler = self._sampler(derived_seed(self._search.seed, self._task, number))
        if number < len(self._first):
            self._study.enqueue_trial(self._first[number])
        self._asked[number] = self._study.ask(fixed_distributions=self._space.distributions)
        return self._space.config(self._asked[number].params)

    def tell(self, trial: Trial) -> None:
        """Learn how a trial ended, be it of this session or an earlier one."""
        value = trial.best if trial.status in ("finished", "stopped") else None
        state = TrialState.COMPLETE if value is not None else TrialState.FAIL
        if trial.number in self._asked:
            self._study.tell(self._asked.pop(trial.number), value, state)
        else:
            self._add(trial.config, state, value)

    def _add(self, config: Config, state: TrialState, value: float | None) -> None:
        parameters, distributions = self._space.parameters(config), self._space.distributions
        told = {"state": state, "value": value, "params": parameters, "distributions": distributions}
        self._study.add_trial(optuna.trial.create_trial(**told))

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._search.searcher == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


class MultiplexSearcher(Searcher):
    """Hands out ``{"task": …, "number": …, **config}``, the turn going to the task with the fewest live trials.

    Parameters
    ----------
    ledger : Ledger
    slots : callable
        How many trials may run at once, asked before each.
    """

    def __init__(self, ledger: Ledger, slots: Callable[[], int]) -> None:
        recipe = ledger.recipe
        super().__init__(metric=ledger.metric, mode="max")
        self._ledger, self._slots = ledger, slots
        self._running: dict[str, Trial] = {}
        self._searches = {}
        known = WarmStart.read(ledger.run)
        for name, task in recipe.tasks.items():
            space = TaskSpace(task, recipe.data.image_size)
            self._searches[name] = TaskSearch(name, space, recipe.search, known.of(name))
            for trial in ledger.trials[name]:
                if trial.status != "unfinished":
                    self._searches[name].tell(trial)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config, None if there is none now, FINISHED if there will be none."""
        task = None if self._ledger.is_over else self._ledger.next_task()
        if task is None:  # what runs may crash, and has to be handed out again then
            return None if self._running and not self._ledger.is_over else Searcher.FINISHED
        if len(self._running) >= self._slots():
            return None
        trial = self._ledger.unstarted(task)
        if trial is None:
            trial = self._ledger.begin(task, self._searches[task].ask(len(self._ledger.trials[task])))
            if self._ledger.is_over:  # its record cannot be written
                return Searcher.FINISHED
        trial.live = True
        self._running[trial_id] = trial
        return {"task": task, "number": trial.number, **trial.config.model_dump(mode="json")}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note an epoch's score."""
        if result.get("epoch"):
            self._running[trial_id].note(result["epoch"], result[self._ledger.metric])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how it ended, and learn from it."""
        trial = self._running.pop(trial_id)
        if not error:  # the scheduler was told of the crash, and recorded it
            self._end(trial, result or {})
        if trial.status != "unfinished":
            self._searches[trial.task].tell(trial)

    def _end(self, trial: Trial, last: dict[str, Any]) -> None:
        ledger = self._ledger
        if last.get("epoch"):  # the one that a trial is stopped at comes here alone
            trial.note(last["epoch"], last[ledger.metric])
        if unseen := last.get("unseen"):
            ledger.refusal = BadInput(Fault("storage", unseen, "mount it on every node, and run this again"))
        if unwritable := last.get("unwritable"):
            ledger.refuse_storage(unwritable)
        if diverged := last.get("diverged"):
            ledger.end(trial, "diverged", diverged)
        elif out_of_memory := last.get("out_of_memory"):
            ledger.end(trial, "failed", out_of_memory)
        elif trial.epoch >= ledger.recipe.search.max_epochs:
            ledger.end(trial, "finished")
        else:
            ledger.end(trial, "unfinished" if ledger.is_over else "stopped")

    def save(self, checkpoint_path: str) -> None:
        """Ray wants a file; what matters is in the ledger."""
        Path(checkpoint_path).write_text("see trials/*/trial.json\n")

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a resumed search is a new Tuner over the old run folder."""
        raise AssertionError("searches are rebuilt from the run folder")


class MultiplexScheduler(FIFOScheduler):
    """Early stopping per task: passes everything on to a scheduler per task."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._schedulers = {name: _scheduler(ledger.recipe) for name in ledger.recipe.tasks}
        self._replay()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Metric and mode are the recipe's."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decision = self._of(trial).on_trial_result(tune_controller, _named(trial), result)
        return TrialScheduler.STOP if self._ledger.is_over else decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Record the crash; a trial that is left unfinished is handed out again."""
        self._of(trial).on_trial_error(tune_controller, _named(trial))
        told = _last_failure(trial.error_file)
        crashed = self._ledger.trials[trial.config["task"]][trial.config["number"]]
        self._ledger.crash(crashed, _reason(told), its_own=NODE_LOST not in told)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._of(trial).on_trial_remove(tune_controller, _named(trial))

    def _of(self, trial: TuneTrial) -> TrialScheduler:
        return self._schedulers[trial.config["task"]]

    def _replay(self) -> None:
        """Put every recorded epoch onto the rungs, in the order in which they came.

        A trial whose last epoch says stop was stopped when the search was killed, before it could be recorded.
        """
        unfinished = {
            (t.task, t.number): t for ts in self._ledger.trials.values() for t in ts if t.status == "unfinished"
        }
        seen = set()
        for row in self._ledger.history().to_dict("records"):
            key = (row["task"], row["number"])
            trial = SimpleNamespace(config={"task": key[0], "number": key[1]})
            if key not in seen:
                self.on_trial_add(None, trial)
                seen.add(key)
            decision = self._of(trial).on_trial_result(None, _named(trial), row)
            if decision == TrialScheduler.STOP and key in unfinished and row["epoch"] == unfinished[key].epoch:
                self._ledger.end(unfinished[key], "stopped")


def _last_failure(error_file: str | None) -> str:
    """Of Ray's file of traces."""
    traces = Path(error_file).read_text() if error_file and Path(error_file).exists() else ""
    return traces.rpartition("Failure # ")[2].strip()


def _reason(failure: str) -> str:
    """The exception, without the trace."""
    if NODE_LOST in failure:
        return NODE_LOST
    lines = failure.splitlines()
    named = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(\([\w.]+\))?: ", line)]
    return "\n".join(lines[named[-1] if named else -1 :])[:MOST_OF_A_REASON].strip() or "its worker died"


def _named(trial: Any) -> Any:
    """The trial under a name that outlives the session; early stopping looks at nothing else of it."""
    return SimpleNamespace(trial_id=trial_name(trial.config["task"], trial.config["number"]))


def _scheduler(recipe: Recipe) -> TrialScheduler:
    search = recipe.search
    if search.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric=f"val_{search.metric}",
        mode="max",
        max_t=search.max_epochs,
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction,
    )
