"""A run folder, ``<storage>/<name>/``, and the names of the files in it.

All of them are plain YAML, JSON, CSV and weights. Ray Tune keeps files of its own below ``trials/``; nothing here reads
them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, get_args

import pandas as pd
import yaml
from upath import UPath

from ovr_ray._version import __version__
from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Recipe, Split, absolute, dumped, parse
from ovr_ray.runs.outputs import (
    Kind,
    joint_model_in,
    metrics_beside,
    predictions_beside,
    refuse_foreign,
    winners_beside,
)
from ovr_ray.runs.records import WINNERS, MadeWith, WinnerRecord, damage_told
from ovr_ray.runs.trial_folder import RECORD, FoundTrial, RefitFolder, TrialFolder, checkpoints_in, read_csv, trial_name
from ovr_ray.storage import listed, location, read_if_there, read_whole, refresh, side_by_side, write_whole

GO_BACK: Final = "give the recipe another name, or go back to what it was"

RENAME: Final = "give the recipe another name or storage: --set name=…"

_RECIPE, _SPLIT, _TRIALS = "recipe.yaml", "split.csv", "trials"
_REFIT, _CLOCK, _WARM_START = "refit", "search.json", "warm_start.json"
_OF_A_SEARCH: Final = {_RECIPE, _SPLIT, _TRIALS, _REFIT, _CLOCK, _WARM_START}
_ABSENT, _MADE_WITH = "absent", "made_with"


@dataclass(frozen=True)
class RunFolder:
    """A run folder, given by its path."""

    path: UPath

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        """Return the folder of this recipe's run, which need not exist."""
        return cls(location(recipe.resolved().storage) / recipe.name)

    @classmethod
    def open(cls, path: str | Path | UPath) -> RunFolder:
        """Return an existing run folder; raises :class:`BadInput` if it is none."""
        run = cls(location(path))
        if not run.exists():
            problem = f"is not a run folder: it has no {_RECIPE} that ovr-ray tune wrote"
            raise BadInput(Fault(str(path), problem, "give <storage>/<name> of a recipe that was run"))
        return run

    @classmethod
    def around(cls, file: UPath) -> RunFolder | None:
        """Return the run folder in which a file lies; None if it lies in none."""
        run = cls(file.parent)
        return run if run.exists() else None

    def exists(self) -> bool:
        """Return whether a search wrote a recipe into the folder, which makes it a run folder."""
        try:
            return f"\n{_MADE_WITH}:".encode() in read_whole(self.path / _RECIPE)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False

    @property
    def joint_model(self) -> UPath:
        """Path of ``joint.pt``, where ``combine`` writes the joint model unless told otherwise."""
        return joint_model_in(self.path)

    @property
    def report(self) -> UPath:
        """Path of ``report.html``."""
        return self.path / "report.html"

    @property
    def clock(self) -> UPath:
        """Path of ``search.json``; see :class:`~ovr_ray.runs.Clock`."""
        return self.path / _CLOCK

    @property
    def warm_start(self) -> UPath:
        """Path of ``warm_start.json``; see :mod:`ovr_ray.search.warm_start`."""
        return self.path / _WARM_START

    @property
    def trials_path(self) -> UPath:
        """Path of ``trials/``, which Ray Tune writes to as well."""
        return self.path / _TRIALS

    @property
    def refit(self) -> RefitFolder:
        """The folder ``refit/``, which need not exist."""
        return RefitFolder(self.path / _REFIT)

    def outputs(self) -> dict[UPath, Kind]:
        """Return what combine, evaluate and report write into the folder, whether or not it exists."""
        model, metrics = self.joint_model, metrics_beside(self.joint_model)
        own: dict[UPath, Kind] = {model: "model", metrics: "metrics", winners_beside(model): "winners"}
        return own | {self.report: "report", predictions_beside(metrics): "predictions"}

    def results(self) -> list[UPath]:
        """Return what a person takes home from a run: the model, metrics, winners and report that exist."""
        return [file for file, kind in self.outputs().items() if kind != "predictions" and file.exists()]

    def refuse_foreign(self) -> None:
        """Raise :class:`BadInput` if the path is a file, or if its folder holds files of our names that are not ours.

        Their names are listed once; a run that has not begun costs no other request.
        """
        refresh(self.path)
        try:
            there = {found.name for found in self.path.iterdir()}
        except (FileNotFoundError, NotADirectoryError):  # a bucket says the latter of a folder that does not exist
            if self.path.is_file():
                raise BadInput(Fault(str(self.path), "is a file, and would have to be a folder", RENAME)) from None
            return
        foreign = sorted(there & _OF_A_SEARCH)
        if foreign and not self.exists():
            problem = f"is not the folder of a run, and holds {', '.join(foreign)} already"
            raise BadInput(Fault(str(self.path), problem, RENAME))
        refuse_foreign({file: kind for file, kind in self.outputs().items() if file.name in there})

    def trial(self, task: str, number: int) -> TrialFolder:
        """Return the folder of one trial, which need not exist."""
        return TrialFolder(self.trials_path / trial_name(task, number))

    def trials(self, tasks: Iterable[str] | None = None) -> list[FoundTrial]:
        """Return all trials with a record, by task and number: one listing, and each record read once, side by side.

        Parameters
        ----------
        tasks : iterable of str, optional
            Return the trials of these tasks only.
        """
        files: dict[str, dict[str, int]] = defaultdict(dict)
        for name, size in listed(self.trials_path).items():
            folder, _, rest = name.partition("/")
            files[folder][rest] = size
        names = [name for name, inside in files.items() if RECORD in inside]
        if tasks is not None:
            wanted = set(tasks)
            names = [name for name in names if name.rpartition("-")[0] in wanted]
        folders = [TrialFolder(self.trials_path / name) for name in names]
        records = side_by_side(TrialFolder.record, folders)
        found = [
            FoundTrial(folder, record, checkpoints_in(folder.path, files[folder.name]))
            for folder, record in zip(folders, records, strict=True)
        ]
        return sorted(found, key=lambda trial: (trial.record.task, trial.record.number))

    @property
    def is_begun(self) -> bool:
        """Whether there is a trial; before the first, the recipe may still be changed."""
        return next(iter(self.trials_path.glob(f"*/{RECORD}")), None) is not None

    def recipe(self, images: str | None = None) -> Recipe:
        """Read the recipe as it was run, with absolute paths; ``images`` as in :meth:`read`."""
        return self.read(images)[0]

    def made_with(self) -> MadeWith:
        """Read the versions and the data's fingerprint that the search began with."""
        return self.read()[1]

    def read(self, images: str | None = None) -> tuple[Recipe, MadeWith]:
        """Read ``recipe.yaml`` once: the recipe as it was run, and what the search began with.

        Parameters
        ----------
        images : str, optional
            Folder in which the images are now; see :func:`with_images`.

        Raises
        ------
        BadInput
            If the file is damaged.
        """
        file = self.path / _RECIPE
        with damage_told(file):
            plain = yaml.safe_load(read_whole(file))
            made_with = MadeWith.model_validate(plain.pop(_MADE_WITH, {}))
        recipe = parse(plain, str(file))
        return recipe if images is None else with_images(recipe, images), made_with

    def split(self) -> pd.DataFrame:
        """Read ``split.csv``: filename, and part (train, val or test); raises :class:`BadInput` if it is damaged."""
        file = self.path / _SPLIT
        try:
            table = read_csv(file, ["filename", "part"], dtype=str, keep_default_na=False)
        except FileNotFoundError:
            raise BadInput(Fault(str(file), "is gone", "bring back a copy of it")) from None
        with damage_told(file):
            if odd := set(table.part) - {*get_args(Split)}:
                raise ValueError(f"no split is called {', '.join(map(repr, odd))}")
        return table

    def winners(self) -> dict[str, WinnerRecord]:
        """Read ``winners.json``, task -> winner; empty before the first ``combine``."""
        file = winners_beside(self.joint_model)
        with damage_told(file):
            text = read_if_there(file)
            return {} if text is None else WINNERS.validate_json(text)

    def begin(self, recipe: Recipe, data_fingerprint: str, split: pd.DataFrame) -> None:
        """Create the folder, or resume in it if the recipe and the data are the same in all that matters.

        Raises
        ------
        BadInput
            If they differ; names every difference.
        """
        if self.is_begun:
            before, made_with = self.read()
            faults = list(_changes(before, recipe))
            if made_with.data_fingerprint != data_fingerprint:
                problem = f"the labels or their split are not those that run {recipe.name!r} began with"
                faults.append(Fault(recipe.data.labels, problem, GO_BACK))
            if faults:
                raise BadInput(faults)
        else:
            packages = ("torch", "torchvision", "ray", "optuna")
            versions = {"ovr-ray": __version__} | {name: version(name) for name in packages}
            made_with = MadeWith(data_fingerprint=data_fingerprint, versions=versions)
        self.path.mkdir(parents=True, exist_ok=True)
        content = recipe.resolved().dump() | {_MADE_WITH: made_with.model_dump()}
        write_whole(self.path / _RECIPE, dumped(content))
        write_whole(self.path / _SPLIT, split.to_csv(sep=";", index=False))


def _changes(before: Recipe, recipe: Recipe) -> Iterator[Fault]:
    old, new = _flat(before.dump()), _flat(recipe.resolved().dump())
    for path in dict.fromkeys([*old, *new]):
        was, now = old.get(path, _ABSENT), new.get(path, _ABSENT)
        if was != now and not _may_change(path) and not _is_longer_halving(path, before, recipe):
            yield Fault(".".join(path), f"was {was!r} when run {recipe.name!r} began and is {now!r} now", GO_BACK)


def _may_change(path: tuple[str, ...]) -> bool:
    """Return whether a field of the recipe may differ between a run and its resumption."""
    match path:
        case ("tasks", _, "trials") | ("resources" | "checkpoints", *_):
            return True
        case ("search", "time_budget" | "max_concurrent" | "max_failures" | "trackers", *_):
            return True
    return False


def _is_longer_halving(path: tuple[str, ...], before: Recipe, recipe: Recipe) -> bool:
    """Return whether the field is the last epoch of a search by halving, and has grown: stopped trials go on then."""
    is_halving = recipe.search.scheduler == "halving"
    return path == ("search", "max_epochs") and is_halving and recipe.search.max_epochs > before.search.max_epochs


def with_images(recipe: Recipe, images: str) -> Recipe:
    """Return a run's recipe with the folder in which its images are now.

    A label file that lay in the old folder, and is there no longer, has moved with the images.
    """
    data, folder = recipe.data, absolute(images)
    update = {"images": folder}
    if data.labels.startswith(f"{data.images}/") and not location(data.labels).exists():
        update["labels"] = folder + data.labels.removeprefix(data.images)
    return recipe.model_copy(update={"data": data.model_copy(update=update)})


def _flat(plain: Any) -> dict[tuple[str, ...], Any]:
    return dict(_leaves(plain, ()))


def _leaves(plain: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(plain, dict) or not plain:
        yield path, plain
        return
    for key, value in plain.items():
        yield from _leaves(value, (*path, str(key)))
