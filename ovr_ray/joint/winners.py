"""The winning checkpoint of every task, chosen by the cards of the checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.model import CARD, WEIGHTS, Card, read_card
from ovr_ray.recipe import Recipe
from ovr_ray.runs import CheckpointFiles, FoundTrial, RunFolder, TrialFolder, WinnerRecord
from ovr_ray.storage import side_by_side

SHOWN: Final = 20
"""Most checkpoints that a message names."""


@dataclass(frozen=True)
class Winner:
    """A checkpoint that was chosen, or that may be."""

    checkpoint: UPath
    card: Card

    @property
    def trial(self) -> str:
        """Name of the trial, or of the fold, that it belongs to."""
        return self.checkpoint.parent.name

    @property
    def name(self) -> str:
        """``TRIAL@EPOCH``."""
        return f"{self.trial}@{self.card.epoch}"

    def record(self, run: RunFolder) -> WinnerRecord:
        """Return its entry of ``winners.json``."""
        inside = self.checkpoint.is_relative_to(run.path)
        return WinnerRecord(
            trial=self.trial,
            epoch=self.card.epoch,
            threshold=self.card.threshold,
            metrics=self.card.metrics,
            config=self.card.config,
            checkpoint=str(self.checkpoint.relative_to(run.path) if inside else self.checkpoint),
        )


def choose(
    run: RunFolder, recipe: Recipe, picks: Mapping[str, str] = {}, tasks: Collection[str] = ()
) -> dict[str, Winner]:
    """Return the winner of every task; parameters and errors are those of :func:`ranked`."""
    return {task: checkpoints[0] for task, checkpoints in ranked(run, recipe, picks, tasks).items()}


def ranked(
    run: RunFolder, recipe: Recipe, picks: Mapping[str, str] = {}, tasks: Collection[str] = ()
) -> dict[str, list[Winner]]:
    """Return for every task the winner, then the best checkpoint of each other trial, the best first.

    The winner is the best checkpoint by ``search.metric``, or the one picked by hand. Among equal scores the higher
    average precision is better, then the earlier epoch.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
        The run's recipe.
    picks : mapping of str to str
        Task -> trial (``crack-0003`` or ``3``), ``TRIAL@EPOCH``, or the path of a checkpoint of the run.
    tasks : collection of str
        Only these tasks; default: all of the recipe.

    Raises
    ------
    BadInput
        If a pick names no task, trial or checkpoint, or a task that is not combined, if no trial has begun, or if
        every checkpoint of a task is damaged.
    RunFailed
        If no trial of a task reached its end; names the task and the reasons.
    """
    refuse_unknown(recipe, [*picks, *tasks])
    wanted = [name for name in recipe.tasks if not tasks or name in tasks]
    if unused := [task for task in picks if task not in wanted]:
        problem = f"is for a task that is left out: --task {' --task '.join(wanted)}"
        remedy = "leave out the pick, or give its --task as well"
        raise BadInput([Fault(f"--pick {f'{task}={picks[task]}'!r}", problem, remedy) for task in unused])
    trials = run.trials(wanted)
    if not trials:
        raise BadInput(Fault(str(run.path), f"has no trial yet of {', '.join(wanted)}", "run ovr-ray tune first"))
    cards = _cards(trials)
    faults, found, empty = [], {}, []
    for task in wanted:
        own = [trial for trial in trials if trial.record.task == task]
        every = [winner for trial in own for winner in cards[trial.folder.path]]
        is_scored = any(trial.record.status.is_scored for trial in own)
        others = every if is_scored else []
        candidates = [one for one in every if _is_meant(picks[task], one)] if task in picks else others
        if candidates:
            found[task] = _best_first(candidates, others, recipe.search.score_column)
        elif task in picks:
            problem = f"task {task!r} has no whole checkpoint {picks[task]!r}"
            names = [winner.name for winner in sorted(every, key=lambda winner: winner.name)]
            remedy = f"TRIAL, TRIAL@EPOCH or its path; there are: {_shown(names) or 'none'}"
            faults.append(Fault("--pick", problem, remedy))
        elif is_scored:
            faults.append(_none_whole(task, run, own))
        else:
            empty.append(_why_none(task, own))
    if faults:
        raise BadInput(faults)
    if empty:
        raise RunFailed("\n".join(empty))
    return found


def refuse_unknown(recipe: Recipe, tasks: Iterable[str]) -> None:
    """Raise :class:`BadInput` for tasks that the recipe does not have."""
    if unknown := [name for name in tasks if name not in recipe.tasks]:
        raise BadInput([Fault(repr(t), "no such task", f"tasks: {', '.join(recipe.tasks)}") for t in unknown])


def last_of(folder: TrialFolder) -> Winner | None:
    """Return the latest whole checkpoint of a trial's or a fold's folder."""
    return max(_whole(folder.checkpoints()), key=lambda found: found.card.epoch, default=None)


def read_winners(run: RunFolder) -> dict[str, Winner]:
    """Return the winners in ``winners.json`` whose checkpoints still exist; empty if there is no such file."""
    folders = {task: run.path / winner.checkpoint for task, winner in run.winners().items()}
    return {task: Winner(folder, card) for task, folder in folders.items() if (card := read_card(folder))}


def _cards(trials: list[FoundTrial]) -> dict[UPath, list[Winner]]:
    """Read the card of every checkpoint, side by side; return the whole checkpoints by their trial's folder."""
    listed = [(folder, files) for trial in trials for folder, files in trial.checkpoints.items()]
    cards = side_by_side(lambda checkpoint: read_card(*checkpoint), listed)
    found: dict[UPath, list[Winner]] = {trial.folder.path: [] for trial in trials}
    for (folder, _), card in zip(listed, cards, strict=True):
        if card:
            found[folder.parent].append(Winner(folder, card))
    return found


def _whole(checkpoints: Mapping[UPath, CheckpointFiles]) -> list[Winner]:
    found = ((folder, read_card(folder, files)) for folder, files in checkpoints.items())
    return [Winner(folder, card) for folder, card in found if card]


def _best_first(candidates: list[Winner], others: list[Winner], score_column: str) -> list[Winner]:
    def rank(winner: Winner) -> tuple[float, float, int]:
        return winner.card.rank(score_column)

    first = max(candidates, key=rank)
    best: dict[str, Winner] = {}
    for other in sorted(others, key=rank, reverse=True):
        if other.trial != first.trial:
            best.setdefault(other.trial, other)
    return [first, *best.values()]


def _is_meant(pick: str, winner: Winner) -> bool:
    """Return whether a pick names a checkpoint. It is only compared with what is there: it may be any text."""
    name, at, epoch = pick.partition("@")
    number = winner.trial.rpartition("-")[2]
    is_trial = name == winner.trial or (name != "" and name.lstrip("0") == number.lstrip("0"))
    is_epoch = not at or epoch.lstrip("0") == str(winner.card.epoch)
    return (is_trial and is_epoch) or Path(pick).absolute() == Path(str(winner.checkpoint)).absolute()


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _none_whole(task: str, run: RunFolder, trials: list[FoundTrial]) -> Fault:
    places = [place for trial in trials for place in trial.checkpoints or [trial.folder.path]]
    names = _shown([str(place.relative_to(run.path)) for place in places])
    problem = f"no checkpoint of task {task!r} is whole; {CARD} or {WEIGHTS} is missing, cut or damaged in {names}"
    return Fault(str(run.path), problem, f"bring back a copy, or train more trials: tune … --extend {task}=+1")


def _why_none(task: str, trials: list[FoundTrial]) -> str:
    records = [(trial.folder.name, trial.record) for trial in trials]
    ended = [f"    {name}: {r.status}{': ' * bool(r.reason)}{r.reason}" for name, r in records]
    why = "\n".join(["its trials:", *ended]) if ended else "none of its trials has begun; run ovr-ray tune first"
    return f"no trial of task {task!r} came to its end: {why}"
