"""Reading of a label file (CSV or Parquet) as a table of text."""

from __future__ import annotations

import codecs
import io
import lzma
import reprlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images.decoding import SUFFIXES
from ovr_ray.storage import location, storage_errors

SPREADSHEETS: Final = (".xlsx", ".xlsm", ".xls", ".ods")

BYTE_ORDER_MARKS: Final = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""First bytes of a text -> its encoding."""


def read_table(path: str, separator: str) -> pd.DataFrame:
    """Read a label file as text.

    Parameters
    ----------
    path : str
        Path or URI. A Parquet file ends in ``.parquet``; all others are CSV, in UTF-8 or with a byte order mark. A CSV
        file may be compressed; ``.gz``, ``.bz2``, ``.xz`` or ``.zip`` follows its suffix.
    separator : str
        Column separator of a CSV file; in a ``.tsv`` file it is always the tab.

    Returns
    -------
    DataFrame of str
        Empty cells are ``""``. The index is the line number (CSV, 1 is the header) or the row number (Parquet, from 1).
        Columns without a name and without a value are left out. Of a Parquet file, only the columns of plain values are
        read: numbers, text, times, and booleans (as 0 and 1).

    Raises
    ------
    BadInput
        If the file does not exist, cannot be read, or has no header or no rows.
    """
    with _told(path):
        table = _read_parquet(path) if path.lower().endswith(".parquet") else _read_csv(path, separator)
    if table.empty:
        raise BadInput(Fault(path, "has no rows"))
    nameless = (table.columns == "") & (table == "").all().to_numpy()
    return table.loc[:, ~nameless]


def separators(path: str) -> list[str]:
    """Return the characters that may separate a table's columns, the most frequent of its header first."""
    if path.lower().endswith(".parquet"):
        return [";"]
    with _told(path), _opened(path) as text:
        header = text.readline()
    marks = Counter(character for character in header if not character.isalnum() and character not in "\"'\r\n_-./")
    return [mark for mark, _ in marks.most_common()] or [";"]


def as_numbers(cells: pd.Series) -> pd.Series:
    """Return the numbers of text cells; NaN where there is none."""
    return pd.to_numeric(cells.str.strip(), errors="coerce")


def headerless(path: str, name: str) -> Fault:
    """Return the fault of a table whose first line names an image."""
    problem = f"names an image ({name!r}), not the columns"
    return Fault(f"{path}, line 1", problem, "put a line with their names above it")


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Raise what goes wrong while a table is read as :class:`BadInput`."""
    damaged = (EOFError, IndexError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
    unreadable: tuple[type[Exception], ...] = (*damaged, *storage_errors())
    try:
        yield
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(Fault(path, "no such file")) from None
    except pd.errors.EmptyDataError:
        raise BadInput(Fault(path, "the file is empty, or begins with an empty line")) from None
    except pd.errors.ParserError as error:
        remedy = "every row needs as many cells as the first; a cell with a separator or a quote in it needs quotes"
        raise BadInput(Fault(path, f"cannot be read: {error}", remedy)) from None
    except UnicodeDecodeError as error:
        problem = f"is not in UTF-8: it has the byte 0x{error.object[error.start]:02x}"
        remedy = "for a file from Excel on Windows: iconv -f CP1252 -t UTF-8 OLD.csv > NEW.csv"
        if path.lower().endswith(SPREADSHEETS):
            problem, remedy = "is a spreadsheet", "save it as CSV (UTF-8)"
        raise BadInput(Fault(path, problem, remedy)) from None
    except unreadable as error:
        raise BadInput(Fault(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")) from None


@contextmanager
def _opened(path: str) -> Iterator[io.TextIOWrapper]:
    """Open a text, decompressed, in the encoding that its byte order mark says."""
    file = location(path).absolute()
    with file.fs.open(file.path, "rb", compression="infer") as content:
        start = content.read(3)
        content.seek(0)
        encoding = next((known for mark, known in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
        with io.TextIOWrapper(content, encoding, newline="") as text:
            yield text


def _read_csv(path: str, separator: str) -> pd.DataFrame:
    if "tsv" in path.lower().split(".")[-2:]:
        separator = "\t"
    with _opened(path) as text:
        # read without a header, because pandas would rename the second of two columns of one name
        cells = pd.read_csv(
            text,
            sep=separator,
            dtype=str,
            header=None,
            index_col=False,
            keep_default_na=False,
            skip_blank_lines=False,
        ).fillna("")
    header = cells.iloc[0].str.strip()
    if "\0" in "".join(header):
        remedy = "it may be UTF-16 without a mark: iconv -f UTF-16LE -t UTF-8 OLD.csv > NEW.csv"
        raise BadInput(Fault(path, "is not in UTF-8: it has null bytes", remedy))
    of_lines = cells.apply(lambda column: column.str.contains("\n", regex=False)).to_numpy()
    if swallowed := [cell for cell in cells.to_numpy()[of_lines] if separator in cell]:
        problem = f"a cell goes over several lines and has separators in it: {reprlib.repr(swallowed[0])}"
        raise BadInput(Fault(path, problem, "close the quote that it begins with, or write two quotes for one"))
    if images := [name for name in header if name.lower().endswith(SUFFIXES)]:
        raise BadInput(headerless(path, images[0]))
    cells.index = pd.RangeIndex(1, len(cells) + 1)
    table = cells.iloc[1:].loc[(cells.iloc[1:] != "").any(axis=1)]
    table.columns = pd.Index(header)
    return table


def _read_parquet(path: str) -> pd.DataFrame:
    """Read the columns of plain values only, because reading Ray's extension types unpickles untrusted data."""
    with location(path).open("rb") as file:
        parquet = pq.ParquetFile(file)
        plain = [field.name for field in parquet.schema_arrow if _is_plain(field.type)]
        columns = parquet.read(plain)
    for place, field in enumerate(columns.schema):
        if pa.types.is_boolean(field.type):
            columns = columns.set_column(place, field.name, columns[place].cast(pa.int8()))
    table = columns.to_pandas(ignore_metadata=True)
    table = table.astype(object).where(table.notna(), "").astype(str)
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_temporal)
    plain = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(test(kind) for test in (*plain, *text))
