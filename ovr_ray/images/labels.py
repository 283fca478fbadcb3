"""The label table: read, check, split, positive weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images.files import stamps
from ovr_ray.images.splitting import limited, split
from ovr_ray.images.tables import read_table
from ovr_ray.recipe import ColumnSplit, Data, RandomSplit, Task

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
SHOWN = 10
"""How many offending rows or files a fault lists."""


@dataclass(frozen=True)
class LabelTable:
    """Which image is what, and which part it belongs to.

    Attributes
    ----------
    files : Series of str
        Path of each image below the image root.
    labels : DataFrame of float32, a column a task
        1, 0, or NaN where the row does not count for the task.
    parts : Series of str
        train, val or test.
    """

    files: pd.Series
    labels: pd.DataFrame
    parts: pd.Series

    def rows(self, part: Part) -> np.ndarray:
        """Row numbers of a part, ascending (int64)."""
        return np.flatnonzero(self.parts == part)

    def of(self, task: str, part: Part) -> np.ndarray:
        """A task's label of every row (float32); NaN outside of the part."""
        return self.labels[task].where(self.parts == part).to_numpy(np.float32)

    def named(self, files: pd.Series) -> LabelTable:
        """The rows of these files, in their order.

        Raises
        ------
        BadInput
            If the table lacks one.
        """
        rows = pd.Index(self.files).get_indexer(files)
        if (rows < 0).any():
            gone = files[rows < 0]
            problem = f"{len(gone)} images of the run's split are no longer in the label file, {gone.iloc[0]} for one"
            raise BadInput(Fault("data.labels", problem, "bring back the label file that the run began with"))
        return LabelTable(*(part.iloc[rows].reset_index(drop=True) for part in (self.files, self.labels, self.parts)))

    def pos_weight(self, task: str) -> float:
        """Negatives / positives of the train part."""
        train = self.labels.loc[self.parts == "train", task]
        return float((train == 0).sum() / (train == 1).sum())

    def without(self, rows: Iterable[int]) -> LabelTable:
        """The same table in which these rows count for no task."""
        labels = self.labels.copy()
        labels.iloc[list(rows)] = np.nan
        return LabelTable(self.files, labels, self.parts)

    def counts(self) -> pd.DataFrame:
        """Images and positives per task and part."""
        by_part = self.labels.groupby(self.parts.to_numpy())
        return pd.concat({"images": by_part.count().T, "positives": by_part.sum().astype(int).T}, axis=1)

    def fingerprint(self) -> str:
        """Changes with any filename, label or part."""
        table = self.labels.assign(**{"\0file": self.files, "\0part": self.parts})
        return hashlib.sha256(pd.util.hash_pandas_object(table).to_numpy().tobytes()).hexdigest()[:16]


def read_labels(data: Data, tasks: dict[str, Task], split_too: bool = True) -> LabelTable:
    """Read and check a label file, and split it.

    Parameters
    ----------
    data : Data
    tasks : dict of str to Task
    split_too : bool
        Without it all rows are test, and a task may have images of one class only.

    Raises
    ------
    BadInput
        With every fault of the file, and of the images it names.
    """
    table = read_table(data.labels, data.separator)
    columns = [task.column for task in tasks.values()]
    stratify = list(data.split.stratify or []) if split_too and isinstance(data.split, RandomSplit) else []
    _check_columns(table, data, [*columns, *stratify], split_too)
    numbers = _numbers(table, list(dict.fromkeys([*columns, *stratify])))
    faults = [*_filename_faults(table, data), *_value_faults(table, numbers, data)]
    labels = numbers[columns].set_axis(pd.Index(tasks), axis=1)
    strata = numbers[list(dict.fromkeys(stratify))] if stratify else labels
    if split_too:
        faults += [*_class_faults(labels, data), *_part_name_faults(table, data)]
    if faults:
        raise BadInput(faults)
    if data.limit and data.limit < len(table):
        strata = strata.loc[limited(strata, data.limit)]
    table, labels = (whole.loc[strata.index].reset_index(drop=True) for whole in (table, labels))
    strata = strata.reset_index(drop=True)
    if not split_too:
        return LabelTable(table[data.filename], labels, pd.Series("test", index=table.index, name="part"))
    if isinstance(data.split, ColumnSplit):
        parts = table[data.split.column].str.strip()
    else:
        parts = split(strata, data.split, _groups(table, data.group) if data.group else None)
    result = LabelTable(table[data.filename], labels, parts.rename("part"))
    if faults := list(empty_part_faults(result, data)):
        raise BadInput(faults)
    return result


def groups(data: Data, files: pd.Series) -> pd.Series:
    """The group of every file of a label table, as :func:`split` takes it: each its own where the recipe names none."""
    if data.group is None:
        return files
    table = read_table(data.labels, data.separator)
    return files.map(_groups(table, data.group).set_axis(table[data.filename]))


def _check_columns(table: pd.DataFrame, data: Data, columns: list[str], split_too: bool) -> None:
    present = list(table.columns)
    extra = [data.group] if split_too and data.group else []
    if split_too and isinstance(data.split, ColumnSplit):
        extra.append(data.split.column)
    faults = []
    for column in dict.fromkeys([data.filename, *columns, *extra]):
        if present.count(column) > 1:
            faults.append(Fault(data.labels, f"has column {column!r} {present.count(column)} times"))
        elif column not in present:
            one = f"; is data.separator {data.separator!r} right?" if len(present) == 1 else ""
            faults.append(Fault(data.labels, f"has no column {column!r}", f"its columns: {', '.join(present)}{one}"))
    if faults:
        raise BadInput(faults)


def _listed(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def _groups(table: pd.DataFrame, column: str) -> pd.Series:
    """A row with no group is a group of its own."""
    return table[column].where(table[column].str.strip() != "", "row " + table.index.astype(str))


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _numbers(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table[columns].apply(pd.to_numeric, errors="coerce").astype("float32")


def _value_faults(table: pd.DataFrame, labels: pd.DataFrame, data: Data) -> Iterable[Fault]:
    for column in labels.columns.unique():
        text = table[column].str.strip()
        wrong = text[(text != "") & ~table[column].pipe(pd.to_numeric, errors="coerce").isin([0, 1])]
        if len(wrong):
            cells = [f"row {row} {value!r}" for row, value in wrong.items()]
            problem = f"{_counted(len(wrong), 'value is', 'values are')} not 0 or 1: {_listed(cells)}"
            remedy = "write 1 for yes, 0 for no, nothing where it is not known"
            yield Fault(f"{data.labels}, column {column!r}", problem, remedy)


def _filename_faults(table: pd.DataFrame, data: Data) -> Iterable[Fault]:
    where = f"{data.labels}, column {data.filename!r}"
    names = table[data.filename]
    empty = names[names.str.strip() == ""]
    if len(empty):
        yield Fault(where, f"{_counted(len(empty), 'row names', 'rows name')} no file: row {_listed(empty.index)}")
    names = names.drop(empty.index)
    twice = names[names.duplicated(keep=False)]
    if len(twice):
        named = [f"{name!r} (rows {_listed(rows)})" for name, rows in twice.groupby(twice).groups.items()]
        yield Fault(
            where,
            f"{_counted(len(named), 'file has', 'files have')} more than one row: {_listed(named)}",
            "keep one row an image",
        )
    outside = names[[name.startswith("/") or ".." in name.split("/") for name in names]]
    if len(outside):
        remedy = f"paths are relative to data.images ({data.images})"
        yield Fault(
            where,
            f"{_counted(len(outside), 'path leaves', 'paths leave')} the image folder: {_listed(outside)}",
            remedy,
        )
    if not UPath(data.images).is_dir():
        yield Fault("data.images", f"{data.images} is not a folder")
        return
    inside = names.drop(outside.index)
    there = stamps(data.images, inside)
    missing = [name for name in inside if name not in there]
    if missing:
        problem = f"{len(missing)} of {len(names)} images are missing: {_listed(missing)}"
        yield Fault(where, problem, f"they are looked for below data.images ({data.images})")


def _class_faults(labels: pd.DataFrame, data: Data) -> Iterable[Fault]:
    for task in labels.columns:
        values = labels[task][labels[task].isin([0, 1])].unique()
        if len(values) < 2:
            only = f"has only {int(values[0])} in it" if len(values) else "has neither 0 nor 1 in it"
            remedy = "a task needs images of both classes: label more images, or remove the task"
            yield Fault(f"{data.labels}, task {task!r}", only, remedy)


def _part_name_faults(table: pd.DataFrame, data: Data) -> Iterable[Fault]:
    if isinstance(data.split, ColumnSplit):
        parts = table[data.split.column]
        if data.group:
            groups = _groups(table, data.group)
            torn = [group for group, inside in parts.groupby(groups) if len(set(inside)) > 1]
            if torn:
                problem = f"{_counted(len(torn), 'group lies', 'groups lie')} in more than one part: {_listed(torn)}"
                yield Fault(f"{data.labels}, column {data.group!r}", problem, "keep a group's rows in one part")
        wrong = [f"row {row} {part!r}" for row, part in parts[~parts.str.strip().isin(PARTS)].items()]
        if wrong:
            yield Fault(f"{data.labels}, column {data.split.column!r}", f"not train, val or test: {_listed(wrong)}")


def empty_part_faults(table: LabelTable, data: Data) -> Iterable[Fault]:
    """Tasks that have only one class in the train or the val part."""
    for part in ("train", "val"):
        labels = table.labels[table.parts == part]
        for task in labels.columns:
            for value, kind in ((1, "positive"), (0, "negative")):
                if not (labels[task] == value).any():
                    total = int((table.labels[task] == value).sum())
                    problem = f"no {kind} image falls into the {part} part ({total} in all)"
                    remedy = "label more of them, or change data.split (shares, seed, or a column of your own)"
                    yield Fault(f"{data.labels}, task {task!r}", problem, remedy)
