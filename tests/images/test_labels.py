from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ovr_ray.errors import BadInput
from ovr_ray.images import SPLITS, LabelTable, read_labels
from ovr_ray.recipe import parse

Write = Callable[..., LabelTable]


@pytest.fixture
def read(tmp_path: Path) -> Write:
    """A function that writes a CSV and empty image files, and reads them as a label table."""

    def written(text: str, files: int = 30, tasks: dict[str, Any] | None = None, **data: Any) -> LabelTable:
        for i in range(files):
            (tmp_path / f"{i}.png").touch()
        (tmp_path / "data.csv").write_text(text)
        tasks = tasks or {name: {} for name in ("a", "b") if f";{name}" in text.partition("\n")[0]}
        paths = {"labels": str(tmp_path / "data.csv"), "images": str(tmp_path)}
        recipe = parse({"name": "x", "data": paths | data, "tasks": tasks or {"a": {}}})
        return read_labels(recipe.data, recipe.tasks)

    return written


def rows(count: int = 30, header: str = "filename;a") -> str:
    return "\n".join([header, *(f"{i}.png;{i % 2}" for i in range(count))])


def test_a_label_file_is_read_as_a_table_of_labels_files_and_splits(read: Write) -> None:
    table = read(rows())
    assert table.labels.a.tolist() == [i % 2 for i in range(30)]
    assert table.files[3] == "3.png"
    assert table.splits.value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}


def test_a_row_with_an_empty_cell_still_counts_for_the_other_task(read: Write) -> None:
    table = read("filename;a;b\n" + "\n".join(f"{i}.png;{i % 2};{'' if i < 10 else i % 2}" for i in range(30)))
    assert table.labels.b.isna().sum() == 10
    assert table.labels.a.notna().all()
    assert table.counts()["images"].to_numpy().sum(axis=1).tolist() == [30, 20]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("filename;a\n", "has no rows"),
        (rows(header="file;a"), "no column 'filename'"),
        (rows(header="filename;c"), "no column 'a'"),
        (rows(header="filename;a;a").replace(";1", ";1;1").replace(";0", ";0;0"), "has column 'a' 2 times"),
        (rows().replace(";", ","), "is data.separator ';' right?"),
        (rows().replace("3.png;1", "3.png;2").replace("5.png;1", "5.png;yes"), "row 5 '2', row 7 'yes'"),
        (rows().replace("7.png", "3.png"), "row 5 '3.png', row 9 '3.png'"),
        (
            rows().replace("4.png", "../4.png").replace("6.png", "/6.png"),
            "2 paths leave the image folder: '../4.png', '/6.png'",
        ),
        (rows().replace(";1", ";0"), "has only 0 in it"),
        (rows().replace("\n8.png", "\n"), "1 row names no file: row 10"),
        (rows().replace("\n8.png", '\n"8\r.png"'), "1 name has a carriage return: row 10 '8\\r.png'"),
        (rows(50), "20 of 50 images are missing: '30.png', '31.png'"),
        (rows() + "\n1;2;3;4;5;6", "cannot be read"),
    ],
)
def test_a_fault_is_reported_with_its_place(text: str, message: str, read: Write) -> None:
    with pytest.raises(BadInput) as caught:
        read(text)
    assert message in str(caught.value)


def test_missing_images_are_counted_and_the_first_ten_are_named(read: Write) -> None:
    with pytest.raises(BadInput) as caught:
        read(rows(50))
    assert "'39.png' and 10 more" in str(caught.value)


def test_different_faults_are_reported_together(read: Write) -> None:
    with pytest.raises(BadInput) as caught:
        read(rows(31).replace("3.png;1", "3.png;2").replace("7.png", "5.png"))
    assert len(caught.value.faults) == 3


def test_a_missing_label_file_is_reported(tmp_path: Path) -> None:
    recipe = parse({"name": "x", "data": {"labels": str(tmp_path / "no.csv"), "images": "."}, "tasks": {"a": {}}})
    with pytest.raises(BadInput, match=r"no\.csv: no such file"):
        read_labels(recipe.data, recipe.tasks)


def test_a_recipe_may_set_the_filename_column_and_the_separator(read: Write) -> None:
    table = read(rows(header="image;a").replace(";", ","), separator=",", filename="image")
    assert len(table.files) == 30


def test_parquet_labels_read_like_csv(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.png").touch()
    frame = pd.DataFrame({"filename": [f"{i}.png" for i in range(30)], "a": [None, 1.0, 0.0] * 10})
    frame.to_parquet(tmp_path / "data.parquet")
    recipe = parse(
        {"name": "x", "data": {"labels": str(tmp_path / "data.parquet"), "images": str(tmp_path)}, "tasks": {"a": {}}}
    )
    assert read_labels(recipe.data, recipe.tasks).labels.a.isna().sum() == 10


def test_labels_of_a_split_are_nan_in_every_other_row(read: Write) -> None:
    text = "filename;a;part\n" + "\n".join(f"{i}.png;{i // 3 % 2};{SPLITS[i % 3]}" for i in range(30))
    table = read(text, split={"column": "part"})
    for number, split in enumerate(SPLITS):
        labels = table.labels_of("a", split)
        assert table.rows(split).tolist() == np.flatnonzero(np.isfinite(labels)).tolist() == list(range(number, 30, 3))
        assert labels[number::3].tolist() == [0, 1] * 5


def test_a_split_column_is_used_and_its_typos_are_reported(read: Write) -> None:
    text = "filename;a;part\n" + "\n".join(f"{i}.png;{i % 2};{SPLITS[i % 3]}" for i in range(30))
    assert read(text, split={"column": "part"}).splits.tolist() == list(SPLITS) * 10
    with pytest.raises(BadInput, match="not train, val or test: row 2 'trian'"):
        read(text.replace("0.png;0;train", "0.png;0;trian"), split={"column": "part"})


def test_a_split_column_must_keep_a_group_in_one_split(read: Write) -> None:
    text = "filename;a;part;module\n" + "\n".join(f"{i}.png;{i % 2};{SPLITS[i % 3]};m{i % 3}" for i in range(30))
    data = {"split": {"column": "part"}, "group": "module"}
    assert len(read(text, **data).files) == 30
    with pytest.raises(BadInput, match="1 group lies in more than one split: m0"):
        read(text.replace("0.png;0;train;m0", "0.png;0;val;m0", 1), **data)


def test_every_row_without_a_group_is_its_own_group(read: Write) -> None:
    text = "filename;a;module\n" + "\n".join(f"{i}.png;{i % 2};" for i in range(30))
    assert read(text, group="module").splits.value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}


def test_a_split_without_positives_is_reported(read: Write) -> None:
    one_positive = "filename;a\n" + "\n".join(f"{i}.png;{int(i == 0)}" for i in range(30))
    with pytest.raises(BadInput, match=r"no positive image falls into the (train|val) split \(1 in all\)"):
        read(one_positive)


def test_a_split_stratified_by_given_columns_does_not_change_with_the_tasks(read: Write) -> None:
    bits = [[row >> bit & 1 for bit in range(4)] for row in range(30)]
    text = "filename;a;b;c;d\n" + "\n".join(f"{i}.png;{';'.join(map(str, row))}" for i, row in enumerate(bits))
    one: dict[str, Any] = {"a": {}}
    more: dict[str, Any] = {"d": {}, "b": {}, "a": {}}
    fixed: dict[str, Any] = {"split": {"stratify": ["a", "c", "d"]}}
    for limit in ({}, {"limit": 20}):
        alone, together = (read(text, tasks=tasks, **fixed, **limit) for tasks in (one, more))
        assert alone.files.equals(together.files)
        assert alone.splits.equals(together.splits)
    assert not read(text, tasks=one).splits.equals(read(text, tasks=more).splits)


def test_columns_to_stratify_by_are_checked_as_label_columns_are(read: Write) -> None:
    with pytest.raises(BadInput, match="no column 'c'"):
        read(rows(), split={"stratify": ["a", "c"]})
    with pytest.raises(BadInput, match=r"column 'c'.*not 0 or 1: row 2 'x'"):
        read(rows().replace(";a", ";a;c").replace("0.png;0", "0.png;0;x"), split={"stratify": ["c"]})


def test_the_default_split_is_stratified_by_the_columns_of_the_tasks(read: Write) -> None:
    text = "filename;a;b\n" + "\n".join(f"{i}.png;{i % 2};{i % 3 // 2}" for i in range(30))
    assert read(text).splits.equals(read(text, split={"stratify": ["a", "b"]}).splits)


def test_a_limit_keeps_the_shares_of_the_combinations(read: Write) -> None:
    table = read("filename;a\n" + "\n".join(f"{i}.png;{int(i % 5 == 0)}" for i in range(30)), limit=20)
    assert len(table.files) == 20
    assert table.labels.a.sum() == 4


def test_the_fingerprint_changes_with_a_label_and_with_the_split(read: Write) -> None:
    prints = {read(rows()).fingerprint(), read(rows()).fingerprint()}
    changed = read(rows().replace("2.png;0", "2.png;1")).fingerprint()
    other_split = read(rows(), split={"seed": 5}).fingerprint()
    assert len(prints) == 1
    assert len(prints | {changed, other_split}) == 3


@pytest.mark.parametrize("cell", ["1\xa0", " 1", "1.0", "+1", "1e0"])
def test_a_number_is_read_whatever_spaces_are_around_it_and_however_it_is_written(cell: str, read: Write) -> None:
    assert read(rows().replace("\n3.png;1", f"\n3.png;{cell}")).labels.a[3] == 1


@pytest.mark.parametrize("cell", ["1\xa01", "１", "yes", "True", "1,0", "NA"])
def test_what_is_no_number_is_quoted_as_it_is_in_the_file(cell: str, read: Write) -> None:
    with pytest.raises(BadInput) as caught:
        read(rows().replace("\n3.png;1", f"\n3.png;{cell}"))
    assert f"1 value is not 0 or 1: row 5 {cell!r}" in str(caught.value)


@pytest.mark.parametrize("other", ["./3.png", ".//3.png", "././3.png"])
def test_one_image_under_two_spellings_is_a_fault_with_both_rows(other: str, read: Write) -> None:
    with pytest.raises(BadInput) as caught:
        read(rows().replace("\n7.png", f"\n{other}"))
    assert f"1 file has more than one row: row 5 '3.png', row 9 {other!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "there", "hint"),
    [
        ("3.png ", "3.png", "'3.png'"),
        ("3.PNG", "3.png", "'3.png'"),
        ("3.jpg", "3.png", "'3.png'"),
        ("a\\b.png", "a/b.png", "'a/b.png'"),
        ("é.png", "e\u0301.png", "'e\u0301.png', which the folder spells in another form of Unicode (NFD)"),
        ("e\u0301.png", "é.png", "'é.png', which the folder spells in another form of Unicode (NFC)"),
    ],
)
def test_a_file_that_differs_a_little_from_a_missing_one_is_suggested(
    written: str, there: str, hint: str, read: Write, tmp_path: Path
) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    with pytest.raises(BadInput) as caught:
        read(rows().replace("\n3.png;", f"\n{written};"))
    assert f"1 of 30 images are missing: {written!r}" in str(caught.value)
    assert f"did you mean {hint}?" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["~", "~root.png", "a::b.png", "s3::x.png", "memory:x.png", "a b#?%20{x}.png", "📷.png"]
)
def test_a_name_is_a_plain_name_below_the_folder_whatever_it_looks_like(name: str, read: Write, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert read(rows().replace("\n3.png;", f"\n{name};")).files[3] == name


def test_a_blank_in_a_split_column_is_told_with_its_row(read: Write) -> None:
    parts = ["val" if i % 3 == 2 else "train" for i in range(30)]
    text = "filename;a;part\n" + "\n".join(f"{i}.png;{i % 2};{part}" for i, part in enumerate(parts))
    assert read(text.replace("\n4.png;0;train", "\n4.png;0;train "), split={"column": "part"}).splits[4] == "train"
    with pytest.raises(BadInput) as caught:
        read(text.replace("\n4.png;0;train", "\n4.png;0;"), split={"column": "part"})
    assert "column 'part': not train, val or test: row 6 ''\n    -> write one of them" in str(caught.value)


@pytest.mark.parametrize("split", [{"seed": 3}, {"column": "part"}])
def test_a_label_file_in_another_order_is_the_same_for_a_run_that_has_begun(split: dict[str, Any], read: Write) -> None:
    lines = [f"{i}.png;{i % 2};{'val' if i % 3 == 2 else 'train'}" for i in range(30)]
    began = read("\n".join(["filename;a;part", *lines]), split=split)
    begun = pd.DataFrame({"filename": began.files, "part": began.splits})
    data = parse({"name": "x", "data": {"labels": "", "images": "", "split": split}, "tasks": {"a": {}}}).data
    prints = [
        read("\n".join(["filename;a;part", *text]), split=split).resumed(begun, data).fingerprint()
        for text in (lines, lines[::-1], [*lines[:-1], lines[-1].replace(";1;", ";0;")], lines[1:])
    ]
    assert [text == began.fingerprint() for text in prints] == [True, True, False, False]


@pytest.mark.parametrize("group", ["stratum", "size", "part"])
def test_a_column_of_groups_may_have_any_name(group: str, read: Write) -> None:
    text = "\n".join([f"filename;a;{group}", *(f"{i}.png;{i % 2};{i // 2}" for i in range(30))])
    table = read(text, group=group)
    assert all(table.splits[i] == table.splits[i + 1] for i in range(0, 30, 2))


def test_a_label_may_be_the_group_too(read: Write) -> None:
    with pytest.raises(BadInput, match="no positive image falls into the"):  # each class is one group
        read(rows(), group="a")
