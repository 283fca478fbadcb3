from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pandas as pd
import pytest

from ovr_ray.errors import BadInput
from ovr_ray.images import as_numbers, read_table, separators

TEXT = "filename;größe\na.png;1\nb.png;\n"


def cells(file: Path, separator: str = ";") -> list[list[str]]:
    table = read_table(str(file), separator)
    return [list(table.columns), *table.to_numpy().tolist()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_a_csv_is_read_whatever_its_encoding_and_compression(
    encoding: str, suffix: str, compress: type[bytes], tmp_path: Path
) -> None:
    file = tmp_path / f"labels.csv{suffix}"
    file.write_bytes(compress(TEXT.encode(encoding)))
    assert cells(file) == [["filename", "größe"], ["a.png", "1"], ["b.png", ""]]
    assert separators(str(file)) == [";"]


@pytest.mark.parametrize("name", ["labels.tsv", "labels.TSV", "~a::b.tsv.gz"])
def test_a_tsv_is_separated_by_tabs_whatever_the_recipe_says(name: str, tmp_path: Path) -> None:
    content = TEXT.replace(";", "\t").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert cells(tmp_path / name, ";")[1] == ["a.png", "1"]


def test_columns_without_a_name_and_a_value_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("filename;a;;\na.png;1;;\nb.png;0;;\n")
    assert cells(tmp_path / "labels.csv") == [["filename", "a"], ["a.png", "1"], ["b.png", "0"]]


def test_parquet_booleans_are_0_and_1_and_empty_where_unknown(tmp_path: Path) -> None:
    table = pd.DataFrame({"filename": ["a.png", "b.png", "c.png"], "x": [True, False, True], "y": [True, None, False]})
    table.to_parquet(tmp_path / "labels.parquet")
    read = read_table(str(tmp_path / "labels.parquet"), ";")
    assert as_numbers(read.x).tolist() == [1, 0, 1]
    assert as_numbers(read.y).fillna(-1).tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", "filename;größe\n".encode("cp1252"), "is not in UTF-8: it has the byte 0xf6\n    -> for a file"),
        ("labels.xlsx", b"PK\x03\x04\xff\xfe\xfd", "is a spreadsheet\n    -> save it as CSV (UTF-8)"),
        ("labels.csv", b"images/a.png;1\nimages/b.png;0\n", "line 1: names an image ('images/a.png'), not the columns"),
        ("labels.csv.gz", b"filename;a\n", "cannot be read: Not a gzipped file"),
        ("labels.csv", b'filename;a\n"a.png;1\n', "cannot be read: Error tokenizing data"),
        ("labels.csv", b"filename;a\na.png;1;2\n", "cannot be read: Error tokenizing data"),
        ("labels.parquet", b"filename;a\n", "cannot be read: Parquet magic bytes not found"),
        ("labels.csv", b"", "the file is empty"),
        ("labels.csv", b"\nfilename;a\n", "the file is empty, or begins with an empty line"),
        ("labels.csv", "filename;a\n".encode("utf-16-le"), "it has null bytes\n    -> it may be UTF-16"),
        (
            "labels.csv",
            b'filename;a;note\na.png;1;"5 cm\nb.png;0;5" long\n',
            "a cell goes over several lines",
        ),
        ("labels.csv.gz", gzip.compress(TEXT.encode(), mtime=0)[:-9] + b"\0", "cannot be read: "),
        ("labels.csv.xz", TEXT.encode(), "cannot be read: "),
        ("labels.csv.zip", TEXT.encode(), "cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_a_remedy(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_table(str(tmp_path / name), ";")
    assert f"{tmp_path / name}" in str(caught.value)
    assert message in str(caught.value)
    assert len(caught.value.faults) == 1
    assert str(caught.value).count(name) == 1


def test_a_text_in_quotes_may_have_lines_or_separators(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text('filename;a;note\na.png;1;"two\nlines"\nb.png;0;"one; line"\n')
    assert cells(tmp_path / "labels.csv")[1:] == [["a.png", "1", "two\nlines"], ["b.png", "0", "one; line"]]
