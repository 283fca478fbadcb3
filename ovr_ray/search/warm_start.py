"""Trials of earlier runs, which a search knows before its first one.

They are read once, and stand in the new run folder from then on: the old ones may go, and a resumed search still draws
what it would have drawn. They inform the searcher alone; no trial, winner or rung of this search is one of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Config, Recipe, absolute
from ovr_ray.run_folder import RunFolder, write_whole
from ovr_ray.search.space import TaskSpace

FILE = "warm_start.json"


@dataclass(frozen=True)
class Seed:
    """A trial of an earlier run, as a task of this search knows it."""

    task: str
    config: Config
    score: float


@dataclass(frozen=True)
class WarmStart:
    """What a search was begun with.

    Attributes
    ----------
    sources : list of str
        As given, paths absolute.
    seeds : list of Seed
    """

    sources: list[str]
    seeds: list[Seed]

    def of(self, task: str) -> list[Seed]:
        """A task's."""
        return [seed for seed in self.seeds if seed.task == task]

    @classmethod
    def read(cls, run: RunFolder) -> WarmStart:
        """Of a run folder; empty if it began without."""
        file = run.file(FILE)
        told = json.loads(file.read_text()) if file.exists() else {"from": [], "trials": []}
        seeds = [Seed(row["task"], Config.model_validate(row["config"]), row["score"]) for row in told["trials"]]
        return cls(told["from"], seeds)

    def save(self, run: RunFolder) -> None:
        """Write ``warm_start.json``, or take it away if there is nothing to be in it."""
        if not self.sources:
            run.file(FILE).unlink(missing_ok=True)
            return
        rows = [{"task": s.task, "score": s.score, "config": s.config.model_dump(mode="json")} for s in self.seeds]
        write_whole(run.file(FILE), json.dumps({"from": self.sources, "trials": rows}, indent=1))


def begin_with(run: RunFolder, recipe: Recipe, given: Collection[str | Path], console: Console) -> WarmStart:
    """What a search knows before its first trial: of a begun one what it began with, else what these runs found.

    Parameters
    ----------
    run : RunFolder
        Of the search.
    recipe : Recipe
    given : collection of str or Path
        ``RUN``: every task learns from the one of its name; ``RUN:TASK=OTHER``: this task alone, from that other one.
    console : Console
        Is told how many trials are used, and why others are not.

    Raises
    ------
    BadInput
        If one is no run folder, or has none of these tasks.
    """
    sources = [_Source.parse(str(one)) for one in given]
    if run.is_begun:
        begun = WarmStart.read(run)
        if sources and (names := [str(source) for source in sources]) != begun.sources:
            told = f"began with {', '.join(begun.sources)}" if begun.sources else "began without one"
            _tell(console, f"{recipe.name} {told}, and goes on so; {', '.join(names)} is for a search of another name")
        return begun
    faults = [fault for source in sources for fault in source.faults(recipe)]
    if faults:
        raise BadInput(faults)
    seeds = [seed for source in sources for task in recipe.tasks for seed in _seeds(source, recipe, task, console)]
    return WarmStart([str(source) for source in sources], seeds)


@dataclass(frozen=True)
class _Source:
    """A run, or one task of this search and the task of a run that it learns from."""

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
        """Opened only where a search begins: later the run may be gone."""
        return RunFolder.open(self.path)

    def counterpart(self, task: str) -> str:
        """What the run may call a task of this search; nothing, if the task is not to learn from it."""
        return task if not self.task else self.other if self.task == task else ""

    def faults(self, recipe: Recipe) -> list[Fault]:
        where, there = f"--warm-start {self}", self.run.recipe().tasks
        if self.task and self.task not in recipe.tasks:
            return [Fault(where, f"no such task {self.task!r}", f"tasks: {', '.join(recipe.tasks)}")]
        if not any(self.counterpart(task) in there for task in recipe.tasks):
            remedy = f"it has {', '.join(there)}: RUN:TASK=OTHER names one for a task of this recipe"
            return [Fault(where, f"has no task {self.other or ' or '.join(recipe.tasks)}", remedy)]
        return []


def _seeds(source: _Source, recipe: Recipe, task: str, console: Console) -> list[Seed]:
    """Of one run for one task."""
    other, run = source.counterpart(task), source.run
    old = run.recipe()
    if other not in old.tasks:
        if other:
            _tell(console, f"{task}: {source.path} has no such task")
        return []
    space, metric = TaskSpace(recipe.tasks[task], recipe.data.image_size), f"val_{recipe.search.metric}"
    seeds: list[Seed] = []
    refused: Counter[str] = Counter()
    trials = [(record, folder.epochs()) for folder in run.trials() if (record := folder.record())["task"] == other]
    for record, epochs in trials:
        config = Config.model_validate(record["config"])
        config = config.model_copy(update=config.augment(old.augment).model_dump())  # null was what its recipe said
        if reason := _why_not(record, epochs, config, space, metric):
            refused[reason] += 1
        else:
            seeds.append(Seed(task, config, float(epochs[metric].max())))
    why = "".join(f"; {count} not: {reason}" for reason, count in refused.items())
    _tell(console, f"{task}: {len(seeds)} of {len(trials)} trials of {source.path}, task {other}{why}")
    return seeds


def _why_not(record: dict[str, Any], epochs: pd.DataFrame, config: Config, space: TaskSpace, metric: str) -> str:
    """The reason why a trial is not used; none if it is."""
    if record["status"] not in ("finished", "stopped"):
        return record["status"]
    if metric not in epochs:
        return f"{metric} was not measured"
    outside = space.outside(config)
    return f"{', '.join(outside)} outside of the space" if outside else ""


def _tell(console: Console, text: str) -> None:
    console.print(f"warm start: {text}", markup=False, highlight=False, soft_wrap=True)
