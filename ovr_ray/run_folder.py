"""What a search leaves behind: ``<storage>/<name>/``, and the one place that knows its file names.

All of it is plain YAML, JSON, CSV and weights. Ray Tune keeps files of its own below ``trials/``; nothing here
reads them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pandas as pd
import yaml
from upath import UPath

from ovr_ray import __version__
from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Recipe, parse

Status = Literal["unfinished", "finished", "stopped", "diverged", "failed"]
"""Of a trial: still to be trained; trained to the last epoch; stopped early by its scheduler; its loss was no longer a
number; crashed more often than ``search.max_failures``."""

CHANGEABLE = re.compile(
    r"tasks\.[^.]+\.trials|search\.(time_budget|max_concurrent|max_failures|trackers)|(resources|checkpoints)\..+"
)
"""Recipe fields that may differ between a run and its resumption."""

ABSENT = "absent"

_MADE_WITH = "made_with"


def trial_name(task: str, number: int) -> str:
    """Of a trial, its folder, and what early stopping knows it by."""
    return f"{task}-{number:04d}"


@dataclass(frozen=True)
class TrialFolder:
    """``trials/<task>-<number>/``: one trial's config, epochs and checkpoints."""

    path: UPath

    @property
    def name(self) -> str:
        """See :func:`trial_name`."""
        return self.path.name

    def record(self) -> dict[str, Any]:
        """``trial.json``: task, number, config, status, reason."""
        return json.loads((self.path / "trial.json").read_text())

    def write_record(self, record: dict[str, Any]) -> None:
        """Write ``trial.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "trial.json", json.dumps(record, indent=1))

    def epochs(self) -> pd.DataFrame:
        """``epochs.csv``: a row an epoch, as reported; empty before the first."""
        file = self.path / "epochs.csv"
        return pd.read_csv(file.open(), sep=";") if file.exists() else pd.DataFrame()

    def write_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write ``epochs.csv``."""
        write_whole(self.path / "epochs.csv", pd.DataFrame(rows).to_csv(sep=";", index=False))

    def checkpoint(self, epoch: int) -> UPath:
        """Where the checkpoint of an epoch lies."""
        return self.path / f"checkpoint-{epoch:04d}"

    def checkpoints(self) -> list[UPath]:
        """The checkpoints there are, by epoch; the last may not be whole."""
        return sorted(self.path.glob("checkpoint-*"), key=lambda folder: folder.name)


@dataclass(frozen=True)
class FoldFolder(TrialFolder):
    """``refit/<task>-fold-<number>/``: a fold's epochs and checkpoint, and what it says of the images it held out."""

    def predictions(self) -> pd.DataFrame | None:
        """``predictions.csv``: filename, fold, label, logit, logit_flips; written last, so None before the end."""
        return _table(self.path / "predictions.csv")

    def write_predictions(self, table: pd.DataFrame) -> None:
        """Write ``predictions.csv``."""
        _write_table(self.path / "predictions.csv", table)


@dataclass(frozen=True)
class RefitFolder:
    """``refit/``: winning configs trained again as folds."""

    path: UPath

    def record(self) -> dict[str, Any]:
        """``refit.json``: folds, seed, and per task what its folds are made from; empty before the first refit."""
        file = self.path / "refit.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write_record(self, record: dict[str, Any]) -> None:
        """Write ``refit.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "refit.json", json.dumps(record, indent=1))

    @property
    def clock(self) -> UPath:
        """``clock.json``: how long it took; who gave the last sign of life, and when (0: it ended)."""
        return self.path / "clock.json"

    def fold(self, task: str, number: int) -> FoldFolder:
        """One fold's folder, there or not."""
        return FoldFolder(self.path / f"{task}-fold-{number}")

    def out_of_fold(self, task: str) -> pd.DataFrame | None:
        """``<task>.csv``: the folds' predictions together; None before the last one is done."""
        return _table(self.path / f"{task}.csv")

    def write_out_of_fold(self, task: str, table: pd.DataFrame) -> None:
        """Write ``<task>.csv``."""
        _write_table(self.path / f"{task}.csv", table)


@dataclass(frozen=True)
class RunFolder:
    """A run folder by its path."""

    path: UPath

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        """Where this recipe's run lies, or will lie."""
        return cls(UPath(recipe.resolved().storage) / recipe.name)

    @classmethod
    def open(cls, path: str | Path | UPath) -> RunFolder:
        """One that is there; raises :class:`BadInput` if it is not."""
        run = cls(UPath(path))
        if not (run.path / "recipe.yaml").exists():
            raise BadInput(Fault(str(path), "is not a run folder (no recipe.yaml in it)", "ovr-ray tune makes one"))
        return run

    def file(self, name: str) -> UPath:
        """``winners.json``, ``joint.pt``, ``metrics.json`` and so on."""
        return self.path / name

    def trial(self, task: str, number: int) -> TrialFolder:
        """One trial's folder, there or not."""
        return TrialFolder(self.path / "trials" / trial_name(task, number))

    def trials(self) -> Iterator[TrialFolder]:
        """All trials with a record, by name."""
        for file in sorted((self.path / "trials").glob("*/trial.json"), key=str):
            yield TrialFolder(file.parent)

    @property
    def is_begun(self) -> bool:
        """Whether there is a trial; before the first there is nothing that a change of the recipe could spoil."""
        return next(self.trials(), None) is not None

    @property
    def refit(self) -> RefitFolder:
        """``refit/``, there or not."""
        return RefitFolder(self.path / "refit")

    def recipe(self) -> Recipe:
        """As it was run, paths absolute."""
        plain = self._read_recipe()
        plain.pop(_MADE_WITH, None)
        return parse(plain, str(self.file("recipe.yaml")))

    def split(self) -> pd.DataFrame:
        """``split.csv``: filename, part."""
        return pd.read_csv(self.file("split.csv").open(), sep=";", dtype=str, keep_default_na=False)

    def begin(self, recipe: Recipe, data_fingerprint: str, split: pd.DataFrame) -> None:
        """Make the folder, or resume in it, if the recipe and the data are the same in all that matters.

        Raises
        ------
        BadInput
            If they are not; says what differs.
        """
        if self.is_begun:
            self._refuse_changes(recipe, data_fingerprint)
            made_with = self.made_with()
        else:
            packages = ("torch", "torchvision", "ray", "optuna")
            versions = {"ovr-ray": __version__} | {name: version(name) for name in packages}
            made_with = {"data_fingerprint": data_fingerprint, "versions": versions}
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(recipe.resolved().dump() | {_MADE_WITH: made_with}, sort_keys=False, allow_unicode=True)
        write_whole(self.file("recipe.yaml"), text)
        write_whole(self.file("split.csv"), split.to_csv(sep=";", index=False))

    def made_with(self) -> dict[str, Any]:
        """Versions and the data's fingerprint, as the search began with them."""
        return self._read_recipe().get(_MADE_WITH, {})

    def _read_recipe(self) -> dict[str, Any]:
        return yaml.safe_load(self.file("recipe.yaml").read_text())

    def _refuse_changes(self, recipe: Recipe, data_fingerprint: str) -> None:
        remedy = "give the recipe another name, or go back to what it was"
        old, new = _flat(self.recipe().dump()), _flat(recipe.resolved().dump())
        faults = [
            Fault(key, f"was {before!r} when run {recipe.name!r} began and is {now!r} now", remedy)
            for key in dict.fromkeys([*old, *new])
            if (before := old.get(key, ABSENT)) != (now := new.get(key, ABSENT)) and not CHANGEABLE.fullmatch(key)
        ]
        if self.made_with().get("data_fingerprint") != data_fingerprint:
            problem = f"the labels or their split are not those that run {recipe.name!r} began with"
            faults.append(Fault(recipe.data.labels, problem, remedy))
        if faults:
            raise BadInput(faults)


def refresh(path: UPath) -> None:
    """Forget what is remembered of a bucket's files: others write there."""
    if not isinstance(path, Path):
        path.fs.invalidate_cache()


def storage_errors() -> tuple[type[Exception], ...]:
    """What storage may raise: no such file, protocol or package, half a file; botocore's errors are no OSErrors."""
    # another thread may be importing it right now
    of_botocore = getattr(sys.modules.get("botocore.exceptions"), "BotoCoreError", None)
    return (OSError, ImportError, ValueError, *([of_botocore] if of_botocore else []))


def write_whole(file: UPath, content: str | bytes) -> None:
    """Write a file so that a reader, another writer or a power cut finds the old one or a new one, never half of it."""
    content = content.encode() if isinstance(content, str) else content
    if isinstance(file, Path):
        partial = file.with_name(f".{file.name}.{uuid4().hex}.partial")  # trials may mend the same shard at once
        try:
            partial.write_bytes(content)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    else:  # object stores put whole objects
        file.write_bytes(content)


def _table(file: UPath) -> pd.DataFrame | None:
    return pd.read_csv(file.open(), sep=";", dtype={"filename": str}, keep_default_na=False) if file.exists() else None


def _write_table(file: UPath, table: pd.DataFrame) -> None:
    write_whole(file, table.to_csv(sep=";", index=False, float_format="%.9g"))


def _flat(plain: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict) or not plain:
        return {path: plain}
    return {
        k: v for key, value in plain.items() for k, v in _flat(value, f"{path}.{key}" if path else str(key)).items()
    }
