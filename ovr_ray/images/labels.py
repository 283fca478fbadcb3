"""The label table: reading, checking and splitting a label file."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images.duplicates import contents, units
from ovr_ray.images.files import alike, stamps
from ovr_ray.images.splitting import limited, split
from ovr_ray.images.tables import as_numbers, read_table
from ovr_ray.recipe import ColumnSplit, Data, RandomSplit, Split, Task
from ovr_ray.storage import location

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHOWN = 10
"""Most rows or files that a fault lists."""


@dataclass(frozen=True)
class LabelTable:
    """The images' labels and splits.

    Attributes
    ----------
    files : Series of str
        Path of each image below the image root.
    labels : DataFrame of float32, one column per task
        1, 0, or NaN if the row does not count for the task.
    splits : Series of str
        train, val or test; named ``part``, as in files.
    notes : tuple of Fault
        What is worth a look but stops nothing; empty before the images were read.
    """

    files: pd.Series
    labels: pd.DataFrame
    splits: pd.Series
    notes: tuple[Fault, ...] = ()

    def rows(self, split: Split) -> np.ndarray:
        """Return the row numbers of a split, ascending (int64)."""
        return np.flatnonzero(self.splits == split)

    def labels_of(self, task: str, split: Split) -> np.ndarray:
        """Return a task's label of every row (float32); NaN outside the split."""
        return self.labels[task].where(self.splits == split).to_numpy(np.float32)

    def named(self, files: pd.Series) -> LabelTable:
        """Return the table of these files only, in their order.

        Raises
        ------
        BadInput
            If the table lacks one of them.
        """
        rows = pd.Index(self.files).get_indexer(files)
        if (rows < 0).any():
            gone = files[rows < 0]
            problem = f"{len(gone)} images of the run's split are no longer in the label file, e.g. {gone.iloc[0]}"
            raise BadInput(Fault("data.labels", problem, "restore the label file that the run started with"))
        columns = (self.files, self.labels, self.splits)
        return LabelTable(*(column.iloc[rows].reset_index(drop=True) for column in columns))

    def without(self, rows: Iterable[int]) -> LabelTable:
        """Return a copy of the table in which these rows count for no task."""
        labels = self.labels.copy()
        labels.iloc[list(rows)] = np.nan
        return replace(self, labels=labels)

    def counts(self) -> pd.DataFrame:
        """Return the numbers of images and positives per task and split."""
        by_split = self.labels.groupby(self.splits.to_numpy())
        return pd.concat({"images": by_split.count().T, "positives": by_split.sum().astype(int).T}, axis=1)

    def fingerprint(self) -> str:
        """Return a hash that changes with any filename, label or split."""
        table = self.labels.assign(**{"\0file": self.files, "\0part": self.splits})
        return hashlib.sha256(pd.util.hash_pandas_object(table).to_numpy().tobytes()).hexdigest()[:16]

    def resumed(self, begun: pd.DataFrame, data: Data) -> LabelTable:
        """Return the table in the order of the run that it was read for; the table as it is if other files are in it.

        Parameters
        ----------
        begun : DataFrame
            ``filename`` and ``part`` of the run. A random split is taken from it, because drawing depends on the order.
        data : Data
        """
        if set(self.files) != set(begun.filename):
            return self
        table = self.named(begun.filename)
        return replace(table, splits=begun.part) if isinstance(data.split, RandomSplit) else table


def read_labels(data: Data, tasks: dict[str, Task], with_split: bool = True) -> LabelTable:
    """Read and check a label file, and split its rows.

    Parameters
    ----------
    data : Data
    tasks : dict of str to Task
    with_split : bool
        If False, all rows are test, and a task may have images of one class only.

    Raises
    ------
    BadInput
        If the file has faults or names missing images; carries all faults found.
    """
    table = read_table(data.labels, data.separator)
    columns = [task.column for task in tasks.values()]
    stratify = list(data.split.stratify or []) if with_split and isinstance(data.split, RandomSplit) else []
    _check_columns(table, data, [*columns, *stratify], with_split)
    numbers = _numbers(table, list(dict.fromkeys([*columns, *stratify])))
    faults = [*_filename_faults(table, data), *_value_faults(table, numbers, data)]
    labels = numbers[columns].set_axis(pd.Index(tasks), axis=1)
    strata = numbers[list(dict.fromkeys(stratify))] if stratify else labels
    if with_split:
        faults += [*_class_faults(labels, data), *_split_column_faults(table, data)]
    if faults:
        raise BadInput(faults)
    if data.limit and data.limit < len(table):
        strata = strata.loc[limited(strata, data.limit)]
    table, labels = (frame.loc[strata.index].reset_index(drop=True) for frame in (table, labels))
    strata = strata.reset_index(drop=True)
    if not with_split:
        return LabelTable(table[data.filename], labels, pd.Series("test", index=table.index, name="part"))
    if isinstance(data.split, ColumnSplit):
        splits = table[data.split.column].str.strip()
    else:
        own_groups = _groups(table, data.group) if data.group else None
        splits = split(strata, data.split, units(table[data.filename], own_groups, data))
    result = LabelTable(table[data.filename], labels, splits.rename("part"))
    if faults := [*empty_split_faults(result, data), *_torn_duplicates(result, data)]:
        raise BadInput(faults)
    return result


def groups(data: Data, files: pd.Series) -> pd.Series | None:
    """Return which files of a label table stay together, as :func:`split` takes it; None if each is its own."""
    own_groups = None
    if data.group is not None:
        table = read_table(data.labels, data.separator)
        own_groups = files.map(_groups(table, data.group).set_axis(table[data.filename]))
    return units(files, own_groups, data)


def _check_columns(table: pd.DataFrame, data: Data, columns: list[str], with_split: bool) -> None:
    present = list(table.columns)
    extra = [data.group] if with_split and data.group else []
    if with_split and isinstance(data.split, ColumnSplit):
        extra.append(data.split.column)
    faults = []
    for column in dict.fromkeys([data.filename, *columns, *extra]):
        if present.count(column) > 1:
            faults.append(Fault(data.labels, f"has column {column!r} {present.count(column)} times"))
        elif column not in present:
            hint = f"; is data.separator {data.separator!r} right?" if len(present) == 1 else ""
            remedy = f"its columns: {', '.join(map(repr, present))}{hint}"
            faults.append(Fault(data.labels, f"has no column {column!r}", remedy))
    if faults:
        raise BadInput(faults)


def listed(items: Iterable[object], between: str = ", ") -> str:
    """Return the first :data:`SHOWN` items as text, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return between.join(texts[:SHOWN]) + more


def _quoted(items: Iterable[object]) -> str:
    return listed(map(repr, items))


def _groups(table: pd.DataFrame, column: str) -> pd.Series:
    """Return each row's group; a row without one is a group of its own."""
    return table[column].where(table[column].str.strip() != "", "row " + table.index.astype(str))


def counted(count: int, one: str, many: str) -> str:
    """Return a number with the words that fit it."""
    return f"{count} {one if count == 1 else many}"


def _numbers(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table[columns].apply(as_numbers).astype("float32")


def _value_faults(table: pd.DataFrame, labels: pd.DataFrame, data: Data) -> Iterable[Fault]:
    for column in labels.columns.unique():
        text = table[column]
        wrong = text[(text.str.strip() != "") & ~as_numbers(text).isin([0, 1])]
        if len(wrong):
            cells = [f"row {row} {value!r}" for row, value in wrong.items()]
            problem = f"{counted(len(wrong), 'value is', 'values are')} not 0 or 1: {listed(cells)}"
            remedy = "write 1 for yes, 0 for no, and leave the cell empty if it is not known"
            yield Fault(f"{data.labels}, column {column!r}", problem, remedy)


def _filename_faults(table: pd.DataFrame, data: Data) -> Iterable[Fault]:
    where = f"{data.labels}, column {data.filename!r}"
    names = table[data.filename]
    empty = names[names.str.strip() == ""]
    if len(empty):
        yield Fault(where, f"{counted(len(empty), 'row names', 'rows name')} no file: row {listed(empty.index)}")
    names = names.drop(empty.index)
    torn = names[names.str.contains("\r", regex=False)]
    if len(torn):  # pandas would write it unquoted, as the end of a row
        cells = [f"row {row} {name!r}" for row, name in torn.items()]
        problem = f"{counted(len(torn), 'name has', 'names have')} a carriage return: {listed(cells)}"
        yield Fault(where, problem, "rename the files")
    files = names.map(posixpath.normpath)
    twice = names[files.duplicated(keep=False)]
    if len(twice):
        named = [", ".join(f"row {row} {name!r}" for row, name in rows.items()) for _, rows in twice.groupby(files)]
        problem = f"{counted(len(named), 'file has', 'files have')} more than one row: {listed(named, '; ')}"
        yield Fault(where, problem, "keep one row per image")
    outside = names[[name.startswith("/") or ".." in name.split("/") for name in names]]
    if len(outside):
        problem = f"{counted(len(outside), 'path leaves', 'paths leave')} the image folder: {_quoted(outside)}"
        yield Fault(where, problem, f"paths are relative to data.images ({data.images})")
    if not location(data.images).is_dir():
        yield Fault("data.images", f"{data.images!r} is not a folder")
        return
    inside = names.drop(outside.index)
    existing = stamps(data.images, inside)
    missing = [name for name in inside if name not in existing]
    if missing:
        problem = f"{len(missing)} of {len(names)} images are missing: {_quoted(missing)}"
        looked = f"they are looked for below data.images ({data.images})"
        yield Fault(where, problem, "; ".join(filter(None, [looked, alike(missing[0], data.images)])))


def _class_faults(labels: pd.DataFrame, data: Data) -> Iterable[Fault]:
    for task in labels.columns:
        values = labels[task][labels[task].isin([0, 1])].unique()
        if len(values) < 2:
            problem = f"has only {int(values[0])} in it" if len(values) else "has neither 0 nor 1 in it"
            remedy = "a task needs images of both classes: label more images, or remove the task"
            yield Fault(f"{data.labels}, task {task!r}", problem, remedy)


def _split_column_faults(table: pd.DataFrame, data: Data) -> Iterable[Fault]:
    if isinstance(data.split, ColumnSplit):
        cells = table[data.split.column]
        splits = cells.str.strip()
        if data.group:
            by_group = splits.groupby(_groups(table, data.group))
            torn = [group for group, inside in by_group if len(set(inside)) > 1]
            if torn:
                problem = f"{counted(len(torn), 'group lies', 'groups lie')} in more than one split: {listed(torn)}"
                yield Fault(f"{data.labels}, column {data.group!r}", problem, "keep a group's rows in one split")
        wrong = [f"row {row} {value!r}" for row, value in cells[~splits.isin(SPLITS)].items()]
        if wrong:
            problem = f"not train, val or test: {listed(wrong)}"
            remedy = "write one of them into every row; a row that is for none of them has to be removed"
            yield Fault(f"{data.labels}, column {data.split.column!r}", problem, remedy)


def _torn_duplicates(table: LabelTable, data: Data) -> Iterable[Fault]:
    if isinstance(data.split, ColumnSplit) and data.duplicates == "together":
        content = contents(table.files, data.images)
        torn = table.files[table.splits.groupby(content).transform("nunique") > 1]
        if len(torn):
            same = [listed(map(repr, files), " = ") for _, files in torn.groupby(content)]
            problem = f"files of the same content lie in more than one split: {listed(same, '; ')}"
            remedy = "keep them in one split, or set data.duplicates: warn"
            yield Fault(f"{data.labels}, column {data.split.column!r}", problem, remedy)


def empty_split_faults(table: LabelTable, data: Data) -> Iterable[Fault]:
    """Yield a fault for each class of a task that has no image in the train or val split."""
    for name in ("train", "val"):
        labels = table.labels[table.splits == name]
        for task in labels.columns:
            for value, kind in ((1, "positive"), (0, "negative")):
                if not (labels[task] == value).any():
                    total = int((table.labels[task] == value).sum())
                    problem = f"no {kind} image falls into the {name} split ({total} in all)"
                    remedy = "label more of them, or change data.split (shares, seed, or a column of your own)"
                    yield Fault(f"{data.labels}, task {task!r}", problem, remedy)
