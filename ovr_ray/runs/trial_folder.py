"""The folders of trials, folds and refits, and the names of the files in them.

A checkpoint's files belong to :mod:`ovr_ray.model`.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from upath import UPath

from ovr_ray.runs.records import RefitRecord, TrialRecord, damage_told
from ovr_ray.storage import listed, read_if_there, read_whole, side_by_side, write_whole

RECORD: Final = "trial.json"

_EPOCHS: Final = "epochs.csv"
_PARTS: Final = "parts.txt"

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
        with damage_told(self.path / RECORD):
            return TrialRecord.from_json(read_whole(self.path / RECORD))

    def write_record(self, record: TrialRecord) -> None:
        """Write ``trial.json``, in a folder that need not exist yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / RECORD, record.to_json())

    def epochs(self) -> pd.DataFrame:
        """Read ``epochs.csv``, one row per epoch; empty before the first epoch has ended."""
        table = _read_table(self.path / _EPOCHS, "epoch", keep_default_na=True)
        return pd.DataFrame() if table is None else table

    def write_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write ``epochs.csv``."""
        write_whole(self.path / _EPOCHS, pd.DataFrame(rows).to_csv(sep=";", index=False))

    def parts(self) -> int:
        """Read ``parts.txt``: the number of micro-batches to begin with; 1 if there is no such file."""
        text = read_if_there(self.path / _PARTS)
        return int(text) if text else 1

    def write_parts(self, count: int) -> None:
        """Write ``parts.txt``, for the next try of a team whose memory ran out."""
        write_whole(self.path / _PARTS, f"{count}\n")

    def checkpoint(self, epoch: int) -> UPath:
        """Return the folder of an epoch's checkpoint."""
        return self.path / f"checkpoint-{epoch:04d}"

    def checkpoints(self) -> dict[UPath, CheckpointFiles]:
        """Return the checkpoints, in the order of their epochs, and the files in each; the last may be incomplete."""
        return checkpoints_in(self.path, listed(self.path))


@dataclass(frozen=True)
class FoundTrial:
    """A trial in a listing of a run folder: its folder, its record, and its checkpoints at that time."""

    folder: TrialFolder
    record: TrialRecord
    checkpoints: dict[UPath, CheckpointFiles]


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
        file = self.path / "refit.json"
        with damage_told(file):
            text = read_if_there(file)
            return RefitRecord() if text is None else RefitRecord.from_json(text)

    def write_record(self, record: RefitRecord) -> None:
        """Write ``refit.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "refit.json", record.to_json())

    @property
    def clock(self) -> UPath:
        """Path of ``clock.json``; see :class:`~ovr_ray.runs.Clock`."""
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


def read_epochs(folders: Sequence[TrialFolder]) -> pd.DataFrame:
    """Read ``epochs.csv`` of many trials, side by side.

    Returns
    -------
    DataFrame
        The epochs of all trials, in their order; ``place`` is a trial's place in ``folders``.
    """
    try:
        return _joined(side_by_side(lambda folder: read_if_there(folder.path / _EPOCHS), folders))
    except ValueError:  # reading one at a time names the damaged file
        return pd.concat([folder.epochs().assign(place=place) for place, folder in enumerate(folders)])


def _joined(texts: Sequence[str | None]) -> pd.DataFrame:
    """Parse tables of the same columns as one, because pandas takes a millisecond for each that it parses."""
    by_columns: dict[str, list[str]] = defaultdict(list)
    for place, text in enumerate(texts):
        if text is not None:
            columns, *rows, end = text.split("\n")
            if end or "epoch" not in columns.split(";") or any(row.count(";") != columns.count(";") for row in rows):
                raise ValueError("damaged")
            by_columns[columns] += [f"{place};{row}" for row in rows]
    whole = ["\n".join([f"place;{columns}", *rows]) for columns, rows in by_columns.items() if rows]
    tables = [pd.read_csv(io.StringIO(text), sep=";") for text in whole]
    return pd.concat(tables).sort_values("place", kind="stable") if tables else pd.DataFrame()


def checkpoints_in(folder: UPath, files: Mapping[str, int]) -> dict[UPath, CheckpointFiles]:
    """Return the checkpoints in the listing of a trial's folder, in the order of their epochs."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for path, size in files.items():
        checkpoint, _, name = path.partition("/")
        if checkpoint.startswith("checkpoint-") and name:
            found[checkpoint][name] = size
    return {folder / name: found[name] for name in sorted(found, key=lambda name: (len(name), name))}


def read_csv(file: UPath, columns: Collection[str], **options: Any) -> pd.DataFrame:
    """Read a table that has these columns, with options of pandas.

    Raises
    ------
    FileNotFoundError
    BadInput
        If the file is damaged.
    """
    content = read_whole(file)
    with damage_told(file):
        table = pd.read_csv(io.BytesIO(content), sep=";", **options)
        if lacking := [column for column in columns if column not in table]:
            raise ValueError(f"it has no column {', '.join(map(repr, lacking))}")
        if not content.endswith(b"\n"):
            raise ValueError("its end is missing")
    return table


def _read_table(file: UPath, column: str = "filename", keep_default_na: bool = False) -> pd.DataFrame | None:
    """Read a table; None if there is no such file. Without ``keep_default_na`` a file may be called ``NA``."""
    try:
        return read_csv(file, [column], dtype={"filename": str}, keep_default_na=keep_default_na)
    except FileNotFoundError:
        return None


def _write_table(file: UPath, table: pd.DataFrame) -> None:
    write_whole(file, table.to_csv(sep=";", index=False, float_format="%.9g"))
