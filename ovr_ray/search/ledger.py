"""What every task has done and has still to do: one truth for the searcher, the scheduler and the live table.

The ledger lives in the run folder: a trial's record is written before it starts and when it ends. A search that was
killed is rebuilt from these records and the epochs beside them, so nothing depends on Ray's own snapshots.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import get_args

import pandas as pd

from ovr_ray.errors import OvrRayError, RunFailed
from ovr_ray.recipe import Config, Recipe
from ovr_ray.run_folder import RunFolder, Status, TrialFolder
from ovr_ray.search.clock import Clock


@dataclass
class Trial:
    """One trial, as the driver knows it."""

    task: str
    number: int
    config: Config
    folder: TrialFolder
    status: Status = "unfinished"
    reason: str = ""
    failures: int = 0
    """How often it crashed, over all sessions."""
    live: bool = False
    scores: dict[int, float] = field(default_factory=dict)
    """Epoch -> score, so far."""

    @property
    def best(self) -> float | None:
        """Its best epoch's score."""
        return max(self.scores.values(), default=None)

    @property
    def epoch(self) -> int:
        """The last one that is known; 0 before the first."""
        return max(self.scores, default=0)

    def note(self, epoch: int, score: float) -> None:
        """An epoch's score; what was known of it and of later ones is forgotten."""
        self.scores = {known: s for known, s in self.scores.items() if known < epoch} | {epoch: score}

    def save(self) -> None:
        """Write its record."""
        record = {"task": self.task, "number": self.number, "status": self.status, "reason": self.reason}
        self.folder.write_record(record | {"failures": self.failures, "config": self.config.model_dump(mode="json")})


class Ledger:
    """All trials of a search.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
    tasks : collection of str
        Those that get turns now; the others keep what they have.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, tasks: Collection[str]) -> None:
        self.recipe, self.tasks = recipe, [name for name in recipe.tasks if name in tasks]
        self.metric = f"val_{recipe.search.metric}"
        self.run = run
        self.clock = Clock(run)
        self.refusal: OvrRayError | None = None
        """Why no trial can go on, found by one of them."""
        self.trials: dict[str, list[Trial]] = {task: [] for task in recipe.tasks}
        for folder in run.trials():
            self._recall(folder)

    def _recall(self, folder: TrialFolder) -> None:
        record = folder.record()
        config = Config.model_validate(record["config"])
        known = (record["status"], record["reason"], record.get("failures", 0))
        trial = Trial(record["task"], record["number"], config, folder, *known)
        epochs = folder.epochs()
        trial.scores = dict(zip(epochs["epoch"], epochs[self.metric], strict=True)) if len(epochs) else {}
        if trial.status == "unfinished" and trial.epoch >= self.recipe.search.max_epochs:
            trial.status = "finished"
        self.trials[trial.task].append(trial)

    @property
    def out_of_time(self) -> bool:
        """Whether the time budget is spent."""
        return self.seconds_left == 0

    @property
    def seconds_left(self) -> float | None:
        """Of the time budget; None: no limit."""
        budget = self.recipe.search.time_budget
        return None if budget is None else max(0.0, budget - self.clock.seconds)

    @property
    def is_over(self) -> bool:
        """Whether nothing may go on now, whatever is left."""
        return self.out_of_time or self.refusal is not None

    def counts(self) -> pd.DataFrame:
        """How far every task is: trials by status, its budget and its best score, by task name."""
        rows: dict[str, dict[str, float]] = {}
        for task, trials in self.trials.items():
            count = Counter("running" if trial.live else trial.status for trial in trials)
            best = max((trial.best for trial in trials if trial.best is not None), default=math.nan)
            columns = ("running", *get_args(Status))
            rows[task] = {"budget": self.recipe.tasks[task].trials, "begun": len(trials)}
            rows[task] |= {name: count[name] for name in columns} | {"best": best}
        return pd.DataFrame.from_dict(rows, orient="index")

    def live(self, task: str) -> int:
        """How many of a task's trials run now."""
        return sum(trial.live for trial in self.trials[task])

    def unstarted(self, task: str) -> Trial | None:
        """A trial that an earlier session left unfinished, and that does not run."""
        return next((t for t in self.trials[task] if t.status == "unfinished" and not t.live), None)

    def left(self, task: str) -> int:
        """How many of a task's trials still have to start, or to start again."""
        done_or_live = sum(trial.live or trial.status != "unfinished" for trial in self.trials[task])
        return max(0, self.recipe.tasks[task].trials - done_or_live)

    def next_task(self) -> str | None:
        """Whose turn it is: of the tasks with trials left, the one with the fewest running; None if none is left."""
        waiting = [task for task in self.tasks if self.left(task)]
        return min(waiting, key=lambda task: (self.live(task), -self.left(task)), default=None)

    def begin(self, task: str, config: Config) -> Trial:
        """A new trial, its record on disk; if the disk is full, there is a :attr:`refusal`."""
        number = len(self.trials[task])
        trial = Trial(task, number, config, self.run.trial(task, number))
        self._save(trial)
        self.trials[task].append(trial)
        return trial

    def end(self, trial: Trial, status: Status, reason: str = "") -> None:
        """Record how a trial ended; ``unfinished`` leaves it to a later session."""
        trial.status, trial.reason, trial.live = status, reason, False
        self._save(trial)

    def _save(self, trial: Trial) -> None:
        try:
            trial.save()
        except OSError as error:  # Tune would take it for the trial's failure
            self.refuse_storage(f"{error.filename or trial.folder.path}: {error.strerror or error}")

    def refuse_storage(self, problem: str) -> None:
        """End the search: nothing more can be written."""
        self.refusal = RunFailed(f"storage: {problem}; make room there, and run this again: it goes on")

    def crash(self, trial: Trial, reason: str, its_own: bool = True) -> None:
        """Leave a crashed trial to be tried again, or record that it crashed once too often.

        Parameters
        ----------
        trial : Trial
        reason : str
        its_own : bool
            Without it the crash does not count: its machine was taken away.
        """
        trial.failures += its_own
        is_over = trial.failures > self.recipe.search.max_failures
        self.end(trial, "failed" if is_over else "unfinished", reason)

    def rest(self) -> None:
        """Nothing runs any more."""
        for trials in self.trials.values():
            for trial in trials:
                trial.live = False

    def settle(self) -> None:
        """Record the ends of trials that a killed search could no longer record."""
        for trials in self.trials.values():
            for trial in trials:
                if trial.status != trial.folder.record()["status"]:
                    trial.save()

    def complete(self) -> bool:
        """Whether every trial of the tasks at hand has ended."""
        return not any(self.left(task) or self.live(task) for task in self.tasks)

    def lost_tasks(self) -> list[str]:
        """For every task at hand whose trials have all failed or diverged: its name, and why they did."""
        lost = []
        for task in self.tasks:
            trials = self.trials[task]
            if trials and all(trial.status in ("failed", "diverged") for trial in trials):
                reasons = "".join(f"\n    {trial.folder.name}: {trial.status}: {trial.reason}" for trial in trials)
                lost.append(f"every trial of task {task!r} failed:{reasons}")
        return lost

    def history(self) -> pd.DataFrame:
        """Every recorded epoch of every trial, in the order in which they were reached."""
        epochs = [
            trial.folder.epochs().assign(task=trial.task, number=trial.number)
            for trials in self.trials.values()
            for trial in trials
            if trial.scores
        ]
        return pd.concat(epochs).sort_values("time", kind="stable") if epochs else pd.DataFrame()
