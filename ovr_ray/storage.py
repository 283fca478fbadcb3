"""Files on a disk or in a bucket: written whole, listed once, read side by side."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from upath import UPath

from ovr_ray.errors import BadInput, Fault

READERS = 16
"""Files that are read at a time: a bucket answers after tens of milliseconds."""

T = TypeVar("T")
R = TypeVar("R")


def refresh(path: UPath) -> None:
    """Drop fsspec's cached listings of a bucket, because other processes write there."""
    if not isinstance(path, Path):
        path.fs.invalidate_cache()


def storage_errors() -> tuple[type[Exception], ...]:
    """Return what storage may raise: no such file, protocol or package, half a file; botocore's are no OSErrors."""
    # another thread may be importing botocore right now
    of_botocore = getattr(sys.modules.get("botocore.exceptions"), "BotoCoreError", None)
    return (OSError, ImportError, ValueError, *([of_botocore] if of_botocore else []))


def write_whole(file: UPath, content: str | bytes) -> None:
    """Write a file so that a reader, another writer or a power cut finds the old one or a new one, never half of it."""
    content = content.encode() if isinstance(content, str) else content
    if isinstance(file, Path):
        partial = file.with_name(f".{file.name}.{uuid4().hex}.partial")  # trials may mend the same shard at once
        try:
            partial.write_bytes(content)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    else:  # object stores put whole objects
        file.write_bytes(content)


def read_whole(file: UPath) -> bytes:
    """Return a file's content; one request to a bucket, where opening the file would be two."""
    return file.read_bytes() if isinstance(file, Path) else file.fs.cat_file(file.path)


def read_if_there(file: UPath) -> str | None:
    """Return a file's text, or None if there is no such file."""
    try:
        return read_whole(file).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed(folder: UPath) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its path relative to it (with ``/``).

    A bucket is listed once, however many folders there seem to be in it. An absent folder has no files.
    """
    if isinstance(folder, Path):
        return dict(_on_disk(str(folder)))
    refresh(folder)
    root = folder.fs._strip_protocol(str(folder)).rstrip("/") + "/"
    found = folder.fs.find(root, detail=True)
    return {name.removeprefix(root): told["size"] for name, told in found.items()}


def _on_disk(root: str) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = f"{folder}/{name}"
            try:
                yield path[len(root) + 1 :], os.stat(path).st_size  # noqa: PTH116  a path object takes longer
            except OSError:  # a running trial replaced it, or it is a link to itself
                continue


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply ``work``, which waits for storage, to :data:`READERS` items at a time; results are in the items' order."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(work, items))


def location(path: str | Path) -> UPath:
    """Return a path or URI that the user gave; raises :class:`BadInput` if nothing here can open its protocol."""
    try:
        found = UPath(path)
        if isinstance(found, Path):
            found.lstat()
        else:
            found.fs  # noqa: B018  imports the package of the protocol
    except (ImportError, TypeError, ValueError) as error:
        remedy = "pip install 'ovr-ray[aws]' for s3://, 'ovr-ray[gcp]' for gs://; or give a path"
        raise BadInput(Fault(repr(str(path)), f"cannot be opened: {error}", remedy)) from None
    except OSError as error:  # most often there is no such file, which is not an error here
        if error.errno == errno.ENAMETOOLONG:
            raise BadInput(Fault(f"{str(path)[:100]}…", "is longer than a path can be")) from None
    return found
