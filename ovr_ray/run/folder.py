"""A run folder, ``<storage>/<name>/``. This is the only file that knows the names of the files in it.

All of them are plain YAML, JSON, CSV and weights. Ray Tune keeps files of its own below ``trials/``; nothing here reads
them. A checkpoint's files belong to :mod:`ovr_ray.model`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml
from pydantic import TypeAdapter
from upath import UPath

from ovr_ray._version import __version__
from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Recipe, parse
from ovr_ray.run.records import MadeWith, RefitRecord, TrialRecord, WinnerRecord
from ovr_ray.storage import listed, read_if_there, side_by_side, write_whole

CHANGEABLE: Final = re.compile(
    r"tasks\.[^.]+\.trials|search\.(time_budget|max_concurrent|max_failures|trackers)|(resources|checkpoints)\..+"
)
"""Recipe fields that may differ between a run and its resumption."""

GO_BACK: Final = "give the recipe another name, or go back to what it was"

_RECIPE, _SPLIT, _TRIALS, _TRIAL, _EPOCHS = "recipe.yaml", "split.csv", "trials", "trial.json", "epochs.csv"
_ABSENT, _MADE_WITH = "absent", "made_with"
_WINNERS = TypeAdapter(dict[str, WinnerRecord])

CheckpointFiles = Mapping[str, int]
"""Name of a file in a checkpoint's folder -> its size in bytes."""


def trial_name(task: str, number: int) -> str:
    """Return the name of a trial and of its folder."""
    return f"{task}-{number:04d}"


@dataclass(frozen=True)
class TrialFolder:
    """``trials/<task>-<number>/``: the record, epochs and checkpoints of one trial."""

    path: UPath

    @property
    def name(self) -> str:
        """The trial's name; see :func:`trial_name`."""
        return self.path.name

    def record(self) -> TrialRecord:
        """Read ``trial.json``."""
        return TrialRecord.from_json((self.path / _TRIAL).read_text(encoding="utf-8"))

    def write_record(self, record: TrialRecord) -> None:
        """Write ``trial.json``, in a folder that need not exist yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / _TRIAL, record.to_json())

    def epochs(self) -> pd.DataFrame:
        """Read ``epochs.csv``, one row per epoch; empty before the first epoch has ended."""
        table = _read_table(self.path / _EPOCHS, keep_default_na=True)
        return pd.DataFrame() if table is None else table

    def write_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write ``epochs.csv``."""
        write_whole(self.path / _EPOCHS, pd.DataFrame(rows).to_csv(sep=";", index=False))

    def checkpoint(self, epoch: int) -> UPath:
        """Return the folder of an epoch's checkpoint."""
        return self.path / f"checkpoint-{epoch:04d}"

    def checkpoints(self) -> dict[UPath, CheckpointFiles]:
        """Return the checkpoints, in the order of their epochs, and the files in each; the last may be incomplete."""
        return _checkpoints(self.path, listed(self.path))


@dataclass(frozen=True)
class FoundTrial:
    """A trial in a listing of a run folder: its folder, its record, and its checkpoints at that time."""

    folder: TrialFolder
    record: TrialRecord
    checkpoints: dict[UPath, CheckpointFiles] = field(default_factory=dict)


@dataclass(frozen=True)
class FoldFolder(TrialFolder):
    """``refit/<task>-fold-<number>/``: a fold's epochs, its checkpoint, and its predictions of held-out images."""

    def predictions(self) -> pd.DataFrame | None:
        """Read ``predictions.csv`` (filename, fold, label, logit, logit_flips); None before the fold is complete."""
        return _read_table(self.path / "predictions.csv")

    def write_predictions(self, table: pd.DataFrame) -> None:
        """Write ``predictions.csv``, the last file of a fold."""
        _write_table(self.path / "predictions.csv", table)


@dataclass(frozen=True)
class RefitFolder:
    """``refit/``: the winning configs, trained again as folds."""

    path: UPath

    def record(self) -> RefitRecord:
        """Read ``refit.json``; without folds and tasks before the first refit."""
        text = read_if_there(self.path / "refit.json")
        return RefitRecord() if text is None else RefitRecord.from_json(text)

    def write_record(self, record: RefitRecord) -> None:
        """Write ``refit.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "refit.json", record.to_json())

    @property
    def clock(self) -> UPath:
        """Path of ``clock.json``; see :class:`~ovr_ray.run.Clock`."""
        return self.path / "clock.json"

    def fold(self, task: str, number: int) -> FoldFolder:
        """Return the folder of one fold, which need not exist."""
        return FoldFolder(self.path / f"{task}-fold-{number}")

    def out_of_fold(self, task: str) -> pd.DataFrame | None:
        """Read ``<task>.csv``, the predictions of all folds; None before the last fold is complete."""
        return _read_table(self.path / f"{task}.csv")

    def write_out_of_fold(self, task: str, table: pd.DataFrame) -> None:
        """Write ``<task>.csv``."""
        _write_table(self.path / f"{task}.csv", table)


@dataclass(frozen=True)
class RunFolder:
    """A run folder, given by its path."""

    path: UPath

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        """Return the folder of this recipe's run, which need not exist."""
        return cls(UPath(recipe.resolved().storage) / recipe.name)

    @classmethod
    def open(cls, path: str | Path | UPath) -> RunFolder:
        """Return an existing run folder; raises :class:`BadInput` if it is none."""
        run = cls(UPath(path))
        if not run.exists():
            raise BadInput(Fault(str(path), "is not a run folder (no recipe.yaml in it)", "ovr-ray tune makes one"))
        return run

    @classmethod
    def around(cls, file: UPath) -> RunFolder | None:
        """Return the run folder in which a file lies; None if it lies in none."""
        run = cls(file.parent)
        return run if run.exists() else None

    def exists(self) -> bool:
        """Return whether there is a recipe in the folder, which makes it a run folder."""
        return (self.path / _RECIPE).exists()

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
        """Path of ``search.json``; see :class:`~ovr_ray.run.Clock`."""
        return self.path / "search.json"

    @property
    def warm_start(self) -> UPath:
        """Path of ``warm_start.json``; see :mod:`ovr_ray.search.warm_start`."""
        return self.path / "warm_start.json"

    @property
    def trials_path(self) -> UPath:
        """Path of ``trials/``, which Ray Tune writes to as well."""
        return self.path / _TRIALS

    @property
    def refit(self) -> RefitFolder:
        """The folder ``refit/``, which need not exist."""
        return RefitFolder(self.path / "refit")

    def results(self) -> list[UPath]:
        """Return what a person takes home from a run: the model, metrics, winners and report that exist."""
        model = self.joint_model
        every = [model, metrics_beside(model), winners_beside(model), self.report]
        return [file for file in every if file.exists()]

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
        names = [name for name, inside in files.items() if _TRIAL in inside]
        if tasks is not None:
            wanted = set(tasks)
            names = [name for name in names if name.rpartition("-")[0] in wanted]
        folders = [TrialFolder(self.trials_path / name) for name in names]
        records = side_by_side(TrialFolder.record, folders)
        found = [
            FoundTrial(folder, record, _checkpoints(folder.path, files[folder.name]))
            for folder, record in zip(folders, records, strict=True)
        ]
        return sorted(found, key=lambda trial: (trial.record.task, trial.record.number))

    @property
    def is_begun(self) -> bool:
        """Whether there is a trial; before the first, the recipe may still be changed."""
        return next(iter(self.trials_path.glob(f"*/{_TRIAL}")), None) is not None

    def recipe(self) -> Recipe:
        """Read the recipe as it was run, with absolute paths."""
        return self.read()[0]

    def made_with(self) -> MadeWith:
        """Read the versions and the data's fingerprint that the search began with."""
        return self.read()[1]

    def read(self) -> tuple[Recipe, MadeWith]:
        """Read ``recipe.yaml`` once: the recipe as it was run, and what the search began with."""
        file = self.path / _RECIPE
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
        made_with = MadeWith.model_validate(plain.pop(_MADE_WITH, {}))
        return parse(plain, str(file)), made_with

    def split(self) -> pd.DataFrame:
        """Read ``split.csv``: filename, and part (train, val or test)."""
        return pd.read_csv((self.path / _SPLIT).open(), sep=";", dtype=str, keep_default_na=False)

    def winners(self) -> dict[str, WinnerRecord]:
        """Read ``winners.json``, task -> winner; empty before the first ``combine``."""
        text = read_if_there(winners_beside(self.joint_model))
        return {} if text is None else _WINNERS.validate_json(text)

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
        write_whole(self.path / _RECIPE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        write_whole(self.path / _SPLIT, split.to_csv(sep=";", index=False))


def _changes(before: Recipe, recipe: Recipe) -> Iterator[Fault]:
    old, new = _flat(before.dump()), _flat(recipe.resolved().dump())
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if was != now and not CHANGEABLE.fullmatch(key):
            yield Fault(key, f"was {was!r} when run {recipe.name!r} began and is {now!r} now", GO_BACK)


def joint_model_in(folder: UPath) -> UPath:
    """Return the path of the joint model in a folder."""
    return folder / "joint.pt"


def winners_beside(model: UPath) -> UPath:
    """Return the path of ``winners.json`` beside a joint model."""
    return model.with_name("winners.json")


def write_winners(model: UPath, winners: Mapping[str, WinnerRecord]) -> None:
    """Write ``winners.json`` beside a joint model."""
    content = _WINNERS.dump_json(dict(winners), indent=1, by_alias=True, exclude_unset=True)
    write_whole(winners_beside(model), content)


def metrics_beside(model: UPath) -> UPath:
    """Return the path of ``metrics.json`` beside a joint model."""
    return model.with_name("metrics.json")


def predictions_beside(metrics: UPath) -> UPath:
    """Return the path of ``predictions.csv``, every answer that the metrics are computed from, beside them."""
    return metrics.with_name("predictions.csv")


def _checkpoints(folder: UPath, files: Mapping[str, int]) -> dict[UPath, CheckpointFiles]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for path, size in files.items():
        checkpoint, _, name = path.partition("/")
        if checkpoint.startswith("checkpoint-") and name:
            found[checkpoint][name] = size
    return {folder / name: found[name] for name in sorted(found)}


def _read_table(file: UPath, keep_default_na: bool = False) -> pd.DataFrame | None:
    """Read a table; None if there is no such file. Without ``keep_default_na`` a file may be called ``NA``."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            return pd.read_csv(opened, sep=";", dtype={"filename": str}, keep_default_na=keep_default_na)
    except FileNotFoundError:
        return None


def _write_table(file: UPath, table: pd.DataFrame) -> None:
    write_whole(file, table.to_csv(sep=";", index=False, float_format="%.9g"))


def _flat(plain: Any, path: str = "") -> dict[str, Any]:
    return dict(_leaves(plain, path))


def _leaves(plain: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(plain, dict) or not plain:
        yield path, plain
        return
    for key, value in plain.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
