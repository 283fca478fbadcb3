"""The images that a prediction is asked for: files, folders, and tables that name files."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import SUFFIXES, read_table
from ovr_ray.recipe import Recipe, is_uri
from ovr_ray.storage import listed, location

TABLE: Final = re.compile(r"\.(parquet|[ct]sv(\.(gz|bz2|xz|zip))?)$", re.IGNORECASE)
"""Ends of the names of files that are read as tables of image names."""

DERIVED: Final = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini")
"""Names, in lower case, of what file managers and disk stations leave in folders, beside those with a dot in front."""


NO_IMAGES: Final = pd.DataFrame({"filename": [], "path": []}, dtype=object)


def find_images(paths: Sequence[str], recipe: Recipe, root: str | None = None) -> pd.DataFrame:
    """Find image files, in folders and their subfolders, and through tables that name images.

    Links to folders are followed, each real folder once. Names that begin with a dot, and other names of what file
    managers leave in folders, are passed over, and so are broken links, and folders that are named like an image, whose
    content is searched. How many there are is printed to stderr. A file that is named here or in a table is always
    taken. Names are taken as they are: ``~`` is a character.

    Parameters
    ----------
    paths : sequence of str
        Paths or URIs. A table, ``.parquet``, ``.csv`` or ``.tsv``, needs the column that ``data.filename`` of the
        recipe names; a CSV file may be compressed.
    recipe : Recipe
        The joint model's recipe.
    root : str, optional
        Folder that a table's names are relative to; default: the table's folder.

    Returns
    -------
    DataFrame
        ``filename``, as given or as in its table, and ``path``, an absolute path or a URI.

    Raises
    ------
    BadInput
        For every path that does not exist, folder without an image, table without names, and name that is not UTF-8
        or has a carriage return.
    """
    found, faults, passed_over = [], [], 0
    for given in paths:
        try:
            if location(given).is_dir():
                folder = _searched(given)
                passed_over += folder.passed_over
                found.append(located(folder.files))
            else:
                found.append(_found(given, recipe, root))
        except BadInput as error:
            faults += error.faults
    images = pd.concat([NO_IMAGES, *found], ignore_index=True)
    odd = [name for name in images.path if name != name.encode(errors="replace").decode()]
    faults += [Fault(repr(name), "is no name in UTF-8, so no table can hold it", "rename it") for name in odd]
    torn = [name for name in images.path if "\r" in name]
    faults += [
        Fault(repr(name), "has a carriage return, which would end a row of a table", "rename it") for name in torn
    ]
    if faults:
        raise BadInput(faults)
    if passed_over:
        what = "hidden or derived files, broken links, or folders that are named like an image"
        print(f"passed over in folders: {passed_over} entries ({what})", file=sys.stderr)
    return images


def located(names: Sequence[str], root: str = "") -> pd.DataFrame:
    """Return names and absolute paths, because each worker has a current folder of its own.

    A name is below ``root`` unless it begins with ``/`` or is a URI.
    """
    below = [name if not root or name.startswith("/") or is_uri(name) else f"{root}/{name}" for name in names]
    paths = [path if is_uri(path) else str(Path(path).absolute()) for path in below]
    return pd.DataFrame({"filename": list(names), "path": paths}, dtype=object)


def _found(given: str, recipe: Recipe, root: str | None) -> pd.DataFrame:
    path = location(given)
    if TABLE.search(given):
        names = _names(given, recipe.data.filename, recipe.data.separator)
        return located(names, str(path.parent) if root is None else root)
    if not path.exists():
        raise BadInput(Fault(given, "no such file or folder"))
    return located([given])


def _names(table: str, column: str, separator: str) -> list[str]:
    read = read_table(table, separator)
    if list(read.columns).count(column) != 1:
        problem = f"has no column {column!r}" if column not in read.columns else f"has column {column!r} twice"
        remedy = f"its columns: {', '.join(read.columns)}; separator, as in the model's recipe: {separator!r}"
        raise BadInput(Fault(table, problem, remedy))
    names = read[column]
    empty = names.index[names.str.strip() == ""]
    if len(empty):
        raise BadInput(Fault(f"{table}, column {column!r}", f"{len(empty)} rows name no file, row {empty[0]} for one"))
    return names.tolist()


@dataclass
class _Folder:
    """The image files of a folder, and the number of entries that were passed over."""

    files: list[str] = field(default_factory=list)
    passed_over: int = 0


def _searched(given: str) -> _Folder:
    path = location(given)
    folder = _on_disk(path) if isinstance(path, Path) else _in_bucket(path)
    if not folder.files:
        passed_over = f"; {folder.passed_over} hidden or derived entries are passed over" if folder.passed_over else ""
        raise BadInput(Fault(given, "no image in this folder", f"images end in {', '.join(SUFFIXES)}{passed_over}"))
    folder.files.sort()
    return folder


def _on_disk(root: Path) -> _Folder:
    folder, seen, waiting = _Folder(), set[str](), deque([str(root)])
    while waiting:
        here = waiting.popleft()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(here))
        except PermissionError:
            folder.passed_over += 1
            continue
        for entry in entries:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if _is_derived(entry.name):
                folder.passed_over += 1
            elif is_folder:
                # real folders first: what lies in one is named by it, not by a link to it
                (waiting.append if entry.is_symlink() else waiting.appendleft)(entry.path)
                folder.passed_over += _is_image(entry.name)
            elif _is_image(entry.name):
                if is_file:
                    folder.files.append(str(Path(entry.path)))
                else:
                    folder.passed_over += 1
    return folder


def _in_bucket(root: UPath) -> _Folder:
    folder, derived = _Folder(), set[str]()
    for name in listed(root):
        parts = name.split("/")
        first = next((place for place, part in enumerate(parts) if _is_derived(part)), None)
        if first is not None:
            derived.add("/".join(parts[: first + 1]))
        elif _is_image(name):
            folder.files.append(f"{str(root).rstrip('/')}/{name}")
    folder.passed_over = len(derived)
    return folder


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_derived(name: str) -> bool:
    return name.startswith(".") or name.lower() in DERIVED
