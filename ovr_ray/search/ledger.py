"""The bookkeeping of a search: which trials of every task have ended, run, or are left.

It is the only state of a search, shared by the searcher, the scheduler and the live table. A trial's record is written
before it starts and when it ends. A search that was killed is rebuilt from these records and the epochs beside them;
nothing depends on Ray's own snapshots.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import pandas as pd

from ovr_ray.errors import OvrRayError, RunFailed
from ovr_ray.recipe import Config, Recipe
from ovr_ray.runs import Clock, RunFolder, Status, TrialFolder, TrialRecord, read_epochs
from ovr_ray.search.messages import TrialKey
from ovr_ray.search.rules import rule_of


@dataclass
class Trial:
    """One trial, as the driver knows it.

    Attributes
    ----------
    task : str
    number : int
    config : Config
    folder : TrialFolder
    status : Status
    reason : str
        Why it diverged, failed, or crashed the last time.
    failures : int
        How many times it crashed, over all sessions.
    live : bool
        Whether it runs now.
    scores : dict of int to float
        Epoch -> score, of the epochs so far.
    recorded : Status or None
        The status in its record on disk.
    """

    task: str
    number: int
    config: Config
    folder: TrialFolder
    status: Status = Status.UNFINISHED
    reason: str = ""
    failures: int = 0
    live: bool = False
    scores: dict[int, float] = field(default_factory=dict)
    recorded: Status | None = None

    @property
    def best(self) -> float | None:
        """The score of its best epoch."""
        return max(self.scores.values(), default=None)

    @property
    def epoch(self) -> int:
        """The last epoch that is known; 0 before the first."""
        return max(self.scores, default=0)

    @property
    def is_lost(self) -> bool:
        """Whether it ended without a result."""
        return self.status.is_lost

    @property
    def is_ended(self) -> bool:
        """Whether it was trained to its goal, was stopped, or was lost."""
        return self.status != Status.UNFINISHED

    def note(self, epoch: int, score: float) -> None:
        """Add the score of an epoch; scores of this and later epochs that were known before are dropped."""
        self.scores = {known: s for known, s in self.scores.items() if known < epoch} | {epoch: score}

    def save(self) -> None:
        """Write its record."""
        self.folder.write_record(
            TrialRecord(
                task=self.task,
                number=self.number,
                status=self.status,
                reason=self.reason,
                failures=self.failures,
                config=self.config,
            )
        )
        self.recorded = self.status


class Ledger:
    """All trials of a search.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
    tasks : collection of str
        The tasks that get turns now; the others keep their budget for another time.

    Attributes
    ----------
    refusal : OvrRayError or None
        Why no trial can continue, if a trial has found such a reason.
    trials : dict of str to list of Trial
        Task -> its trials, by number.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, tasks: Collection[str]) -> None:
        self.recipe, self.tasks = recipe, [name for name in recipe.tasks if name in tasks]
        self.score_column = recipe.search.score_column
        self.run = run
        self.clock = Clock(run.clock)
        self.refusal: OvrRayError | None = None
        self.trials: dict[str, list[Trial]] = {task: [] for task in recipe.tasks}
        self._rules = {name: rule_of(recipe.search, task.trials) for name, task in recipe.tasks.items()}
        found = run.trials()
        scores: list[dict[int, float]] = [{} for _ in found]
        if len(epochs := read_epochs([trial.folder for trial in found])):
            columns = (epochs[name].tolist() for name in ("place", "epoch", self.score_column))
            for place, epoch, score in zip(*columns, strict=True):
                scores[place][epoch] = score
        for trial, own in zip(found, scores, strict=True):
            self._recall(trial.folder, trial.record, own)
        for recalled in self.every():
            if not recalled.is_lost and recalled.epoch >= self.goal(recalled):
                recalled.status = self._status_at_rest(recalled)

    def _recall(self, folder: TrialFolder, record: TrialRecord, scores: dict[int, float]) -> None:
        known = (record.status, record.reason, record.failures)
        trial = Trial(record.task, record.number, record.config, folder, *known, scores=scores, recorded=record.status)
        self.trials[trial.task].append(trial)

    def _status_at_rest(self, trial: Trial) -> Status:
        """Return the status of a trial that has reached its goal."""
        return Status.FINISHED if trial.epoch >= self.recipe.search.max_epochs else Status.STOPPED

    def goal(self, trial: Trial) -> int:
        """Return the epoch to which a trial may be trained by now; ASHA may stop it before."""
        return self._rules[trial.task].goal(self.trials[trial.task], trial.number)

    def trial(self, key: TrialKey) -> Trial:
        """Return one trial."""
        return self.trials[key.task][key.number]

    def every(self) -> Iterator[Trial]:
        """Yield the trials of all tasks."""
        for trials in self.trials.values():
            yield from trials

    @property
    def out_of_time(self) -> bool:
        """Whether the time budget is spent."""
        return self.seconds_left == 0

    @property
    def seconds_left(self) -> float | None:
        """What is left of the time budget, in seconds; None: no limit."""
        budget = self.recipe.search.time_budget
        return None if budget is None else max(0.0, budget - self.clock.seconds)

    @property
    def is_over(self) -> bool:
        """Whether no trial may start or continue, even if some are left."""
        return self.out_of_time or self.refusal is not None

    def counts(self) -> pd.DataFrame:
        """Return the progress of every task.

        Returns
        -------
        DataFrame
            One row per task: ``budget``; ``begun``; ``running``; the number of trials in each other status, by its
            name; ``best``, the best score (NaN before the first).
        """
        rows: dict[str, dict[str, float]] = {}
        for task, trials in self.trials.items():
            count = Counter("running" if trial.live else trial.status.value for trial in trials)
            best = max((trial.best for trial in trials if trial.best is not None), default=math.nan)
            rows[task] = {"budget": self.recipe.tasks[task].trials, "begun": len(trials)}
            rows[task] |= {name: count[name] for name in ("running", *map(str, Status))} | {"best": best}
        return pd.DataFrame.from_dict(rows, orient="index")

    def live(self, task: str) -> int:
        """Return how many trials of a task run now."""
        return sum(trial.live for trial in self.trials[task])

    def waiting(self, task: str) -> list[Trial]:
        """Return the begun trials of a task that do not run and may be trained further."""
        trials = self.trials[task]
        unsettled = (trials[number] for number in self._rules[task].unsettled(trials))
        return [trial for trial in unsettled if not trial.live]

    def known(self, task: str) -> list[Trial]:
        """Return the ended trials that the draw of a task's next trial learns from."""
        trials = self.trials[task]
        return [trials[number] for number in self._rules[task].known(trials)]

    def left(self, task: str) -> int:
        """Return how many trials of a task still have to be drawn, or to be trained further."""
        done_or_live = len(self.trials[task]) - len(self.waiting(task))
        return max(0, self.recipe.tasks[task].trials - done_or_live)

    def next_task(self) -> str | None:
        """Return the task whose turn it is: the one with the fewest running trials; None if none has a trial now."""
        ready = [task for task in self.tasks if self.left(task) and (self.waiting(task) or self._may_begin(task))]
        return min(ready, key=lambda task: (self.live(task), -self.left(task)), default=None)

    def _may_begin(self, task: str) -> bool:
        trials = self.trials[task]
        return len(trials) < self.recipe.tasks[task].trials and self._rules[task].may_begin(trials)

    def start(self, trial: Trial) -> None:
        """Note that a trial runs now; one that had been stopped is unfinished again."""
        trial.live, trial.status = True, Status.UNFINISHED
        if trial.recorded != trial.status:
            self._save(trial)

    def begin(self, task: str, config: Config) -> Trial:
        """Add a trial and write its record; if the disk is full, :attr:`refusal` is set."""
        number = len(self.trials[task])
        trial = Trial(task, number, config, self.run.trial(task, number))
        self._save(trial)
        self.trials[task].append(trial)
        return trial

    def pause(self, trial: Trial) -> None:
        """Record that a trial trains no further for now: it reached its goal, was stopped, or the search is over."""
        is_cut = self.is_over and trial.epoch < self.goal(trial)
        self.end(trial, Status.UNFINISHED if is_cut else self._status_at_rest(trial))

    def end(self, trial: Trial, status: Status, reason: str = "") -> None:
        """Record how a trial ended; an unfinished one is left to a later session."""
        trial.status, trial.reason, trial.live = status, reason, False
        self._save(trial)

    def _save(self, trial: Trial) -> None:
        try:
            trial.save()
        except OSError as error:  # Tune would take it for a failure of the trial
            self.refuse_storage(f"{error.filename or trial.folder.path}: {error.strerror or error}")

    def refuse_storage(self, problem: str) -> None:
        """End the search, because nothing more can be written."""
        self.refusal = RunFailed(f"storage: {problem}; make room there, and run this again to resume")

    def crash(self, trial: Trial, reason: str, its_own: bool = True) -> None:
        """Leave a crashed trial to be started again, or record that it crashed too often.

        Parameters
        ----------
        trial : Trial
        reason : str
        its_own : bool
            Whether the crash counts; it does not if the trial's machine was lost.
        """
        trial.failures += its_own
        is_over = trial.failures > self.recipe.search.max_failures
        self.end(trial, Status.FAILED if is_over else Status.UNFINISHED, reason)

    def rest(self) -> None:
        """Mark all trials as not running."""
        for trial in self.every():
            trial.live = False

    def settle(self) -> None:
        """Record the ends of trials that a killed search could not record."""
        for trial in self.every():
            if trial.status != trial.recorded:
                trial.save()

    def complete(self) -> bool:
        """Whether every trial of the tasks at hand has ended."""
        return not any(self.left(task) or self.live(task) for task in self.tasks)

    def lost_tasks(self) -> list[str]:
        """Return a message for every task at hand whose trials have all failed or diverged, with the reasons."""
        lost = []
        for task in self.tasks:
            trials = self.trials[task]
            if trials and all(trial.status.is_lost for trial in trials):
                reasons = "".join(f"\n    {trial.folder.name}: {trial.status}: {trial.reason}" for trial in trials)
                lost.append(f"every trial of task {task!r} failed:{reasons}")
        return lost

    def history(self) -> pd.DataFrame:
        """Read every recorded epoch of every trial, with ``task`` and ``number``, in the order of their times."""
        scored = [trial for trial in self.every() if trial.scores]
        if (epochs := read_epochs([trial.folder for trial in scored])).empty:
            return epochs
        trials = [scored[place] for place in epochs.pop("place")]
        epochs = epochs.assign(task=[trial.task for trial in trials], number=[trial.number for trial in trials])
        return epochs.sort_values("time", kind="stable")
