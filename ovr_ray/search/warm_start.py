"""Warm start: trials of earlier runs that a search knows before its first trial.

They are read once and copied into the new run folder: the earlier runs may be deleted, and a resumed search still makes
the same draws. Only the searcher learns from them; they are no trials, winners or rungs of this search.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import Field
from rich.console import Console

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Config, Recipe, absolute
from ovr_ray.runs import Record, RunFolder, TrialRecord, WholeConfig
from ovr_ray.search.space import TaskSpace
from ovr_ray.storage import read_if_there, side_by_side, write_whole


class PriorTrial(Record):
    """A trial of an earlier run, as a task of this search knows it."""

    task: str
    """The task of this search."""
    score: float
    config: WholeConfig


class WarmStart(Record):
    """What a search began with (``warm_start.json``)."""

    sources: list[str] = Field([], alias="from")
    """Earlier runs as given, with absolute paths."""
    trials: list[PriorTrial] = Field(default_factory=list)

    def of(self, task: str) -> list[PriorTrial]:
        """Return the prior trials of a task."""
        return [trial for trial in self.trials if trial.task == task]

    @classmethod
    def read(cls, run: RunFolder) -> WarmStart:
        """Read the warm start of a run; empty if it began without one."""
        text = read_if_there(run.warm_start)
        return cls() if text is None else cls.from_json(text)

    def save(self, run: RunFolder) -> None:
        """Write ``warm_start.json``, or delete it if there are no sources."""
        if self.sources:
            write_whole(run.warm_start, self.to_json())
        else:
            run.warm_start.unlink(missing_ok=True)


def begin_with(run: RunFolder, recipe: Recipe, given: Collection[str | Path], console: Console) -> WarmStart:
    """Return what a search knows before its first trial; a search that has begun keeps what it began with.

    Parameters
    ----------
    run : RunFolder
        The run folder of this search.
    recipe : Recipe
    given : collection of str or Path
        ``RUN``: every task learns from the earlier task of the same name. ``RUN:TASK=OTHER``: only this task learns,
        from that other task.
    console : Console
        Shows how many trials are used, and why others are not.

    Raises
    ------
    BadInput
        If one of them is no run folder, or has none of these tasks.
    """
    sources = [_Source.parse(str(one)) for one in given]
    if run.is_begun:
        begun = WarmStart.read(run)
        if sources and (names := [str(source) for source in sources]) != begun.sources:
            began = f"began with {', '.join(begun.sources)}" if begun.sources else "began without one"
            _show(console, f"{recipe.name} {began}, and keeps to that; {', '.join(names)} needs another recipe name")
        return begun
    faults = [fault for source in sources for fault in source.faults(recipe)]
    if faults:
        raise BadInput(faults)
    trials = [trial for source in sources for task in recipe.tasks for trial in _prior(source, recipe, task, console)]
    return WarmStart(sources=[str(source) for source in sources], trials=trials)


@dataclass(frozen=True)
class _Source:
    """An earlier run; or a task of this search, and the task of an earlier run that it learns from."""

    path: str
    task: str = ""
    other: str = ""

    @classmethod
    def parse(cls, given: str) -> _Source:
        if pair := re.search(r":([^:=/]+)=([^:=/]+)$", given):
            return cls(absolute(given[: pair.start()]), *pair.groups())
        return cls(absolute(given))

    def __str__(self) -> str:
        return self.path + (f":{self.task}={self.other}" if self.task else "")

    @property
    def run(self) -> RunFolder:
        """The earlier run; opened only when a search begins, because it may be deleted later."""
        return RunFolder.open(self.path)

    def counterpart(self, task: str) -> str:
        """Return the earlier task that a task of this search learns from; "" if it does not learn from this run."""
        return task if not self.task else self.other if self.task == task else ""

    def faults(self, recipe: Recipe) -> list[Fault]:
        where, there = f"--warm-start {self}", self.run.recipe().tasks
        if self.task and self.task not in recipe.tasks:
            return [Fault(where, f"no such task {self.task!r}", f"tasks: {', '.join(recipe.tasks)}")]
        if not any(self.counterpart(task) in there for task in recipe.tasks):
            remedy = f"it has {', '.join(there)}: RUN:TASK=OTHER names one for a task of this recipe"
            return [Fault(where, f"has no task {self.other or ' or '.join(recipe.tasks)}", remedy)]
        return []


def _prior(source: _Source, recipe: Recipe, task: str, console: Console) -> list[PriorTrial]:
    """Return the trials of one earlier run that one task learns from."""
    other, run = source.counterpart(task), source.run
    old = run.recipe()
    if other not in old.tasks:
        if other:
            _show(console, f"{task}: {source.path} has no such task")
        return []
    space, score_column = TaskSpace(recipe.tasks[task], recipe.data.image_size), recipe.search.score_column
    used: list[PriorTrial] = []
    refused: Counter[str] = Counter()
    trials = run.trials([other])
    for trial, epochs in zip(trials, side_by_side(lambda t: t.folder.epochs(), trials), strict=True):
        config = trial.record.config
        config = config.model_copy(update=config.augment(old.augment).model_dump())  # null: the old recipe's
        if reason := _refusal(trial.record, epochs, config, space, score_column):
            refused[reason] += 1
        else:
            used.append(PriorTrial(task=task, score=float(epochs[score_column].max()), config=config))
    why = "".join(f"; {count} not: {reason}" for reason, count in refused.items())
    _show(console, f"{task}: {len(used)} of {len(trials)} trials of {source.path}, task {other}{why}")
    return used


def _refusal(record: TrialRecord, epochs: pd.DataFrame, config: Config, space: TaskSpace, score_column: str) -> str:
    """Return the reason why a trial is not used; "" if it is used."""
    if not record.status.is_scored:
        return record.status
    if score_column not in epochs:
        return f"{score_column} was not measured"
    outside = space.outside(config)
    return f"{', '.join(outside)} outside of the space" if outside else ""


def _show(console: Console, text: str) -> None:
    console.print(f"warm start: {text}", markup=False, highlight=False, soft_wrap=True)
