"""Names of runs and tasks, which become parts of paths and of columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Annotated, Final

from pydantic import AfterValidator

LONGEST: Final = 150
"""Bytes of a name in UTF-8. A file system allows 255, and our files' names are up to 60 longer than a task's."""

RESERVED: Final = ("filename", "path", "row", "part", "error")
"""Columns of predictions and splits; no task has such a name."""


def plain(text: str) -> str:
    """Return a text as a name that :data:`Name` accepts; other characters become ``-``. Empty if nothing is left."""
    kept = "".join(c if _is_allowed(c) else "-" for c in unicodedata.normalize("NFC", text))
    while kept and not kept[0].isalnum():
        kept = kept[1:]
    return kept.encode()[:LONGEST].decode(errors="ignore").rstrip("-.")


def collides(name: str, others: Collection[str]) -> bool:
    """Return whether predictions would have a column twice if a task had this name, beside tasks of other names."""
    columns = {*RESERVED, *others, *(f"{task}_probability" for task in others)}
    return not columns.isdisjoint({name, f"{name}_probability"})


def _is_allowed(character: str) -> bool:
    return character.isalnum() or character in "_-." or unicodedata.category(character).startswith("M")


def _checked(name: str) -> str:
    if not name[:1].isalnum() or not all(map(_is_allowed, name)):
        example = f", such as {close!r}" if (close := plain(name)) else ""
        raise ValueError(f"should be of letters, digits, '_', '-' and '.', the first a letter or a digit{example}")
    if len(name.encode()) > LONGEST:
        raise ValueError(f"should have at most {LONGEST} bytes, because files are named after it")
    return name


Name = Annotated[str, AfterValidator(_checked)]
"""A name that becomes part of a path: letters and digits of any script, ``_``, ``-`` and ``.``."""
