"""All tasks of a search behind one Tuner: a searcher and a scheduler per task, with fair turns.

Both are rebuilt from the run folder when a search is resumed: Optuna is given the finished trials again, and those
of a warm start, ASHA the recorded epochs. A draw depends on the seed, the task, the trial's number and what Optuna
knows by then, not on how often the search was interrupted. Halving needs no scheduler of Tune's: every promotion is a
trial of Tune's that ends at its next rung.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, assert_never

import optuna
from optuna.trial import TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ovr_ray import ray_quirks
from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Config, Search
from ovr_ray.runs import Status
from ovr_ray.search.ledger import Ledger, Trial
from ovr_ray.search.messages import Order, TrialKey, end_of, epoch_of
from ovr_ray.search.space import TaskSpace
from ovr_ray.search.warm_start import PriorTrial, WarmStart
from ovr_ray.training import Cause, EarlyEnd, derived_seed

optuna.logging.set_verbosity(optuna.logging.WARNING)

STARTUP_TRIALS: Final = 5
"""Random trials of a task before TPE has enough to learn from."""


class TaskSearch:
    """The searcher of one task: an Optuna study that is asked for configs and told of scores.

    If the recipe gives a ``default``, it is trial 0 and the best matching prior trial is trial 1; otherwise that prior
    trial is trial 0. Without prior trials, trial 0 is the default of every recipe.

    Parameters
    ----------
    task : str
    space : TaskSpace
    search : Search
    prior : sequence of PriorTrial
        Trials of earlier runs that the study knows from the start.
    """

    def __init__(self, task: str, space: TaskSpace, search: Search, prior: Sequence[PriorTrial] = ()) -> None:
        self._task, self._space, self._search = task, space, search
        self._study = optuna.create_study(direction="maximize")
        self._known: set[int] = set()
        for trial in prior:
            self._add(trial.config, trial.score)
        self._first = [space.parameters(space.first())] if space.has_default or not prior else []
        if prior and (best := space.parameters(max(prior, key=lambda trial: trial.score).config)) not in self._first:
            self._first.append(best)

    def ask(self, number: int) -> Config:
        """Return the config of trial ``number``: one of the first ones, or a draw.

        The study forgets the draw. It gets the trial when it has ended, in the order of :meth:`learn`, so that it looks
        the same whether or not the search was interrupted in between.
        """
        self._study.sampler = self._sampler(derived_seed(self._search.seed, self._task, number))
        if number < len(self._first):
            self._study.enqueue_trial(self._first[number])
        drawn = self._study.ask(fixed_distributions=self._space.distributions)
        self._study.tell(drawn, state=TrialState.FAIL)
        return self._space.config(drawn.params)

    def learn(self, trials: Iterable[Trial]) -> None:
        """Learn how trials of this or an earlier session ended, those that it does not know yet."""
        for trial in trials:
            if trial.number not in self._known and trial.status.is_scored and trial.best is not None:
                self._add(trial.config, trial.best)
            self._known.add(trial.number)

    def _add(self, config: Config, value: float) -> None:
        self._study.add_trial(
            optuna.trial.create_trial(
                value=value,
                params=self._space.parameters(config),
                distributions=self._space.distributions,
            )
        )

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        match self._search.searcher:
            case "random":
                return optuna.samplers.RandomSampler(seed)
            case "tpe":
                return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
            case _:
                assert_never(self._search.searcher)


class MultiplexSearcher(Searcher):
    """Hands out the next trial, of the task with the fewest running trials.

    Parameters
    ----------
    ledger : Ledger
    slots : callable
        Returns how many trials may run at once; called before each.
    """

    def __init__(self, ledger: Ledger, slots: Callable[[], int]) -> None:
        recipe = ledger.recipe
        super().__init__(metric=ledger.score_column, mode="max")
        self._ledger, self._slots = ledger, slots
        self._running: dict[str, Trial] = {}
        self._searches = {}
        known = WarmStart.read(ledger.run)
        for name, task in recipe.tasks.items():
            space = TaskSpace(task, recipe.data.image_size)
            self._searches[name] = TaskSearch(name, space, recipe.search, known.of(name))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's config, None if there is none now, or FINISHED if there will be none."""
        task = None if self._ledger.is_over else self._ledger.next_task()
        if task is None:  # wait: a running trial that crashes must be handed out again
            return None if self._running and not self._ledger.is_over else Searcher.FINISHED
        if len(self._running) >= self._slots():
            return None
        trial = next(iter(self._ledger.waiting(task)), None) or self._draw(task)
        self._ledger.start(trial)
        if self._ledger.is_over:  # its record cannot be written
            return Searcher.FINISHED
        self._running[trial_id] = trial
        return Order(TrialKey(task, trial.number), trial.config, self._ledger.goal(trial)).to_tune()

    def _draw(self, task: str) -> Trial:
        search = self._searches[task]
        search.learn(self._ledger.known(task))
        return self._ledger.begin(task, search.ask(len(self._ledger.trials[task])))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note the score of an epoch."""
        self._note(self._running[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how a trial ended."""
        trial = self._running.pop(trial_id)
        if not error:  # MultiplexScheduler.on_trial_error has recorded the crash
            self._end(trial, result or {})

    def _note(self, trial: Trial, result: dict[str, Any]) -> None:
        if epoch := epoch_of(result):
            trial.note(epoch, result[self._ledger.score_column])

    def _end(self, trial: Trial, last: dict[str, Any]) -> None:
        self._note(trial, last)  # Tune reports the epoch at which it stops a trial only here
        if early := end_of(last):
            self._end_early(trial, early)
        else:
            self._ledger.pause(trial)

    def _end_early(self, trial: Trial, early: EarlyEnd) -> None:
        ledger = self._ledger
        match early.cause:
            case Cause.DIVERGED:
                ledger.end(trial, Status.DIVERGED, early.reason)
            case Cause.OUT_OF_MEMORY:
                ledger.end(trial, Status.FAILED, early.reason)
            case Cause.UNSEEN:
                ledger.refusal = BadInput(Fault("storage", early.reason, "mount it on every node, and run this again"))
                ledger.end(trial, Status.UNFINISHED)
            case Cause.UNWRITABLE:
                ledger.refuse_storage(early.reason)
                ledger.end(trial, Status.UNFINISHED)
            case _:
                assert_never(early.cause)

    def save(self, checkpoint_path: str) -> None:
        """Write a file, because Ray wants one; the state is in the ledger."""
        Path(checkpoint_path).write_text("see trials/*/trial.json\n")

    def restore(self, checkpoint_path: str) -> None:
        """Raise: a resumed search is a new Tuner over the old run folder, and never calls this."""
        raise AssertionError("searches are rebuilt from the run folder")


class MultiplexScheduler(FIFOScheduler):
    """Early stopping per task: passes every call on to the scheduler of the trial's task."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._schedulers = {name: _scheduler(ledger.recipe.search) for name in ledger.recipe.tasks}
        self._replay()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept anything: metric and mode are the recipe's."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        key = TrialKey.of(trial)
        self._schedulers[key.task].on_trial_add(tune_controller, _lasting(key))

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        key = TrialKey.of(trial)
        decision = self._schedulers[key.task].on_trial_result(tune_controller, _lasting(key), result)
        return TrialScheduler.STOP if self._ledger.is_over else decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        key = TrialKey.of(trial)
        self._schedulers[key.task].on_trial_complete(tune_controller, _lasting(key), result)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Record the crash; a trial that is left unfinished is handed out again."""
        key = TrialKey.of(trial)
        self._schedulers[key.task].on_trial_error(tune_controller, _lasting(key))
        failure = ray_quirks.last_failure(trial.error_file)
        reason, its_own = ray_quirks.reason_of(failure), not ray_quirks.is_node_loss(failure)
        self._ledger.crash(self._ledger.trial(key), reason, its_own)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        key = TrialKey.of(trial)
        self._schedulers[key.task].on_trial_remove(tune_controller, _lasting(key))

    def _replay(self) -> None:
        """Report every recorded epoch to the schedulers, in the order in which they were reached.

        If early stopping says stop at the last epoch of an unfinished trial, record that: the search was killed before
        it could.
        """
        seen = set()
        for row in self._ledger.history().to_dict("records"):
            key = TrialKey(row["task"], row["number"])
            scheduler = self._schedulers[key.task]
            if key not in seen:
                scheduler.on_trial_add(None, _lasting(key))
                seen.add(key)
            decision = scheduler.on_trial_result(None, _lasting(key), row)
            trial = self._ledger.trial(key)
            is_last = trial.status == Status.UNFINISHED and row["epoch"] == trial.epoch
            if decision == TrialScheduler.STOP and is_last:
                self._ledger.end(trial, Status.STOPPED)


def _lasting(key: TrialKey) -> Any:
    """Return a trial whose identifier is the same in every session, for early stopping."""
    return ray_quirks.stand_in(str(key))


def _scheduler(search: Search) -> TrialScheduler:
    match search.scheduler:
        case "none" | "halving":
            return FIFOScheduler()
        case "asha":
            return ASHAScheduler(
                time_attr="epoch",
                metric=search.score_column,
                mode="max",
                max_t=search.max_epochs,
                grace_period=search.grace_epochs,
                reduction_factor=search.reduction,
            )
        case _:
            assert_never(search.scheduler)
