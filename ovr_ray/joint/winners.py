"""The winning checkpoint of every task, by what the checkpoints say of themselves."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.model import Card, read_card
from ovr_ray.recipe import Recipe
from ovr_ray.run_folder import RunFolder, TrialFolder


@dataclass(frozen=True)
class Winner:
    """A task's chosen checkpoint."""

    checkpoint: UPath
    card: Card

    @property
    def trial(self) -> str:
        """Name of the trial that it is of."""
        return self.checkpoint.parent.name

    def told(self, run: RunFolder) -> dict[str, Any]:
        """As ``winners.json`` has it; a checkpoint within the run folder is given relative to it."""
        inside = self.checkpoint.is_relative_to(run.path)
        return {
            "trial": self.trial,
            "epoch": self.card.epoch,
            "threshold": self.card.threshold,
            "metrics": self.card.metrics,
            "config": self.card.config,
            "checkpoint": str(self.checkpoint.relative_to(run.path) if inside else self.checkpoint),
        }


def choose(run: RunFolder, picks: Mapping[str, str] = {}, tasks: Collection[str] = ()) -> dict[str, Winner]:
    """The best checkpoint of every task by ``search.metric``, or the one picked by hand.

    Of equal scores the one with the higher average precision wins, then the earlier epoch.

    Parameters
    ----------
    run : RunFolder
    picks : mapping of str to str
        Task -> trial (``crack-0003`` or ``3``), ``TRIAL@EPOCH``, or the path of a checkpoint.
    tasks : collection of str
        These alone; default: all of the recipe.

    Raises
    ------
    BadInput
        If a pick names no task, trial or checkpoint.
    RunFailed
        If no trial of a task came to its end; names the task and says why its trials failed.
    """
    recipe = run.recipe()
    refuse_unknown(recipe, [*picks, *tasks])
    metric = f"val_{recipe.search.metric}"
    faults, winners, empty = [], {}, []
    for task in [name for name in recipe.tasks if not tasks or name in tasks]:
        candidates = _picked(run, task, picks[task]) if task in picks else _all(run, task)
        if candidates:
            winners[task] = max(candidates, key=lambda winner: winner.card.rank(metric))
        elif task in picks:
            problem = f"task {task!r} has no whole checkpoint {picks[task]!r}"
            remedy = "TRIAL, TRIAL@EPOCH or the path of a checkpoint; checkpoints lie in trials/*/checkpoint-*"
            faults.append(Fault("--pick", problem, remedy))
        else:
            empty.append(_why_none(run, task))
    if faults:
        raise BadInput(faults)
    if empty:
        raise RunFailed("\n".join(empty))
    return winners


def runners_up(run: RunFolder, task: str, winner: Winner, count: int) -> list[Winner]:
    """The best checkpoints of so many other trials of a task, the best first; fewer if there are fewer."""
    metric = f"val_{run.recipe().search.metric}"
    best: dict[str, Winner] = {}
    for candidate in sorted(_all(run, task), key=lambda other: other.card.rank(metric), reverse=True):
        if candidate.trial != winner.trial:
            best.setdefault(candidate.trial, candidate)
    return list(best.values())[:count]


def refuse_unknown(recipe: Recipe, tasks: Collection[str]) -> None:
    """Raise :class:`BadInput` for tasks that the recipe does not have."""
    if unknown := [name for name in tasks if name not in recipe.tasks]:
        raise BadInput([Fault(repr(t), "no such task", f"tasks: {', '.join(recipe.tasks)}") for t in unknown])


def last_of(folder: TrialFolder) -> Winner | None:
    """The latest whole checkpoint of a trial's or a fold's folder."""
    return max(_whole(folder.checkpoints()), key=lambda found: found.card.epoch, default=None)


def told(run: RunFolder) -> dict[str, dict[str, Any]]:
    """``winners.json``; empty if there is no such file."""
    file = run.file("winners.json")
    return json.loads(file.read_text()) if file.exists() else {}


def read(run: RunFolder) -> dict[str, Winner]:
    """What ``winners.json`` names, of which the checkpoints are still there; nothing if there is no such file."""
    folders = {task: run.path / winner["checkpoint"] for task, winner in told(run).items()}
    return {task: Winner(folder, card) for task, folder in folders.items() if (card := read_card(folder))}


def _all(run: RunFolder, task: str) -> list[Winner]:
    trials = [trial for trial in run.trials() if trial.record()["task"] == task]
    if not any(trial.record()["status"] in ("finished", "stopped") for trial in trials):
        return []
    return _whole([folder for trial in trials for folder in trial.checkpoints()])


def _whole(folders: list[UPath]) -> list[Winner]:
    return [Winner(folder, card) for folder in folders if (card := read_card(folder))]


def _picked(run: RunFolder, task: str, pick: str) -> list[Winner]:
    name, _, epoch = pick.partition("@")
    trial = run.trial(task, int(name)) if name.isdigit() else None
    if trial is None and (run.path / "trials" / name).is_dir():
        trial = next((t for t in run.trials() if t.name == name), None)
    if trial is not None:
        found = _whole(trial.checkpoints())
        return [w for w in found if w.card.task == task and (not epoch or str(w.card.epoch) == epoch.lstrip("0"))]
    return [w for w in _whole([UPath(pick)]) if w.card.task == task]


def _why_none(run: RunFolder, task: str) -> str:
    records = [(trial.name, trial.record()) for trial in run.trials()]
    ended = [
        f"    {name}: {r['status']}{': ' * bool(r['reason'])}{r['reason']}" for name, r in records if r["task"] == task
    ]
    why = "\n".join(["its trials:", *ended]) if ended else "none of its trials has begun; run ovr-ray tune first"
    return f"no trial of task {task!r} came to its end: {why}"
