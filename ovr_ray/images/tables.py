"""A label file, CSV or Parquet, as a table of text."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from ovr_ray.errors import BadInput, Fault


def read_table(path: str, separator: str) -> pd.DataFrame:
    """A label file as text, empty cells as ""; the index is the line (CSV) or row (Parquet) number.

    Of a Parquet file the columns of numbers and text only.

    Raises
    ------
    BadInput
        If there is no such file, or nothing in it that can be read.
    """
    try:
        if path.endswith(".parquet"):
            table = _read_parquet(path)
            table = table.astype(object).where(table.notna(), "").astype(str)
            table.index = pd.RangeIndex(1, len(table) + 1)
        else:
            with UPath(path).open(encoding="utf-8-sig", newline="") as file:
                # read without a header, because pandas renames a second column of the same name
                cells = pd.read_csv(
                    file,
                    sep=separator,
                    dtype=str,
                    header=None,
                    index_col=False,
                    keep_default_na=False,
                    skip_blank_lines=False,
                ).fillna("")
            cells.index = pd.RangeIndex(1, len(cells) + 1)
            table = cells.iloc[1:].loc[(cells.iloc[1:] != "").any(axis=1)]
            table.columns = cells.iloc[0].str.strip()
    except FileNotFoundError:
        raise BadInput(Fault(path, "no such file")) from None
    except pd.errors.EmptyDataError:
        raise BadInput(Fault(path, "the file is empty")) from None
    except (pd.errors.ParserError, UnicodeDecodeError, OSError, ValueError) as error:
        raise BadInput(Fault(path, f"cannot be read: {error}")) from None
    if table.empty:
        raise BadInput(Fault(path, "has no rows"))
    return table


def _read_parquet(path: str) -> pd.DataFrame:
    """The columns of plain values: Ray's extension types unpickle what a stranger wrote as soon as they are read."""
    with UPath(path).open("rb") as file:
        parquet = pq.ParquetFile(file)
        plain = [field.name for field in parquet.schema_arrow if _is_plain(field.type)]
        return parquet.read(plain).to_pandas(ignore_metadata=True)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_temporal)
    plain = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(test(kind) for test in (*plain, *text))
