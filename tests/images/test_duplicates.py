"""Files of the same content before the split; their content need be no image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.images import LabelTable, duplicates, read_labels
from ovr_ray.images.duplicates import contents, units
from ovr_ray.recipe import parse
from tests.support import GRAY

Read = Callable[..., LabelTable]
COUNT = 40
TOGETHER = GRAY.model_copy(update={"duplicates": "together"})


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """A function that writes files and reads their labels; ``content(row)`` is what a row's file holds."""

    def written(content: Callable[[int], int], **data: Any) -> LabelTable:
        rows = range(COUNT)
        for row in rows:
            (tmp_path / f"{row}.png").write_text(f"{content(row):02}")
        columns = {"filename": [f"{row}.png" for row in rows], "a": [row % 2 for row in rows]}
        columns |= {"panel": [f"p{row // 2}" for row in rows]}
        columns |= {"part": ["train", "train", "val", "val"] * (COUNT // 4)}
        pd.DataFrame(columns).to_csv(tmp_path / "data.csv", sep=";", index=False)
        paths = {"labels": str(tmp_path / "data.csv"), "images": str(tmp_path)}
        recipe = parse({"name": "x", "data": paths | data, "tasks": {"a": {}}})
        return read_labels(recipe.data, recipe.tasks)

    return written


def torn(table: LabelTable, content: Callable[[int], int]) -> int:
    """Return how many contents lie in more than one split."""
    return int(table.splits.groupby([content(row) for row in range(COUNT)]).nunique().gt(1).sum())


def pairs(row: int) -> int:
    return row // 2


def each_its_own(row: int) -> int:
    return row


def test_files_of_the_same_content_fall_into_the_same_split_if_they_are_to_stay_together(read: Read) -> None:
    assert torn(read(pairs), pairs) > 0
    table = read(pairs, duplicates="together")
    assert torn(table, pairs) == 0
    assert table.splits.value_counts().to_dict() == {"train": 24, "val": 8, "test": 8}


@pytest.mark.parametrize("group", [None, "panel"])
def test_without_duplicates_keeping_them_together_changes_no_split(read: Read, group: str | None) -> None:
    data: dict[str, Any] = {"group": group, "split": {"seed": 3}}
    expected, table = (read(each_its_own, duplicates=option, **data) for option in ("warn", "together"))
    assert table.splits.equals(expected.splits)
    assert table.fingerprint() == expected.fingerprint()


def test_groups_that_share_a_content_stay_together_with_all_their_files(tmp_path: Path) -> None:
    for name, content in zip("abcdef", ("1", "2", "2", "3", "4", "4"), strict=True):
        (tmp_path / name).write_text(content)
    groups = pd.Series(["one", "one", "two", "two", "three", "three"])
    joined = units(pd.Series(list("abcdef")), groups, TOGETHER.model_copy(update={"images": str(tmp_path)}))
    assert joined is not None
    assert joined.tolist() == ["one", "one", "one", "one", "three", "three"]


def test_a_split_column_that_tears_duplicates_apart_is_refused_if_they_are_to_stay_together(read: Read) -> None:
    own: dict[str, Any] = {"split": {"column": "part"}}
    assert len(read(lambda row: row // 4 if row < 8 else row, **own).files) == COUNT
    with pytest.raises(BadInput) as caught:
        read(lambda row: row // 4 if row < 8 else row, **own, duplicates="together")
    assert "column 'part': files of the same content lie in more than one split: " in str(caught.value)
    assert "'0.png' = '1.png' = '2.png' = '3.png'; '4.png' = " in str(caught.value)
    assert len(read(pairs, **own, duplicates="together").files) == COUNT


@pytest.mark.parametrize("storage", ["disk", "bucket"])
def test_only_files_of_equal_size_are_read(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = UPath(tmp_path) if storage == "disk" else UPath(f"memory://{tmp_path}")
    root.mkdir(parents=True, exist_ok=True)
    held = {"a": b"12", "b": b"12", "c": b"34", "alone": b"123", "empty": b"", "empty too": b""}
    for name, content in held.items():
        (root / name).write_bytes(content)
    read = list[str]()

    def read_file(file: str) -> bytes:
        read.append(file.removeprefix(f"{root}/"))
        return UPath(file).read_bytes()

    monkeypatch.setattr(duplicates, "read_file", read_file)
    number = contents(pd.Series([*held, "gone"]), str(root))
    assert sorted(read) == ["a", "b", "c"]
    assert number[0] == number[1]
    assert number.nunique() == 6
