"""Reading of a label file (CSV or Parquet) as a table of text."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from ovr_ray.errors import BadInput, Fault


def read_table(path: str, separator: str) -> pd.DataFrame:
    """Read a label file as text.

    Parameters
    ----------
    path : str
        Path or URI; a Parquet file ends in ``.parquet``, all others are CSV.
    separator : str
        Column separator of a CSV file.

    Returns
    -------
    DataFrame of str
        Empty cells are ``""``. The index is the line number (CSV, 1 is the header) or the row number (Parquet, from 1).
        Of a Parquet file, only the columns of plain values are read: numbers, text, booleans and times.

    Raises
    ------
    BadInput
        If the file does not exist, cannot be read, or has no rows.
    """
    try:
        if path.endswith(".parquet"):
            table = _read_parquet(path)
            table = table.astype(object).where(table.notna(), "").astype(str)
            table.index = pd.RangeIndex(1, len(table) + 1)
        else:
            with UPath(path).open(encoding="utf-8-sig", newline="") as file:
                # read without a header, because pandas would rename the second of two columns of one name
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
    """Read the columns of plain values only, because reading Ray's extension types unpickles untrusted data."""
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
