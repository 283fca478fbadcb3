"""Which image files there are, and how to tell when one has changed."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

from upath import UPath

VERSIONS = ("ETag", "etag", "mtime", "LastModified", "updated", "created")
"""What filesystems call what changes when a file is written: S3, Google's and HTTP's tags first, then times."""


def stamps(root: str, names: Iterable[str]) -> dict[str, str]:
    """Size and version (time of writing, or a bucket's tag) of each of these files that is there.

    Parameters
    ----------
    root : str
        Folder or URI. A bucket is listed once, as to ask for each object alone would take a round trip each.
    names : iterable of str
        Paths below ``root``.
    """
    folder = UPath(root)
    return _on_disk(str(folder), names) if isinstance(folder, Path) else _in_listing(folder, names)


def _on_disk(folder: str, names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            told = os.stat(f"{folder}/{name}")  # noqa: PTH116  a path object takes longer than to ask the disk
        except (OSError, ValueError):  # ValueError: a name that no file can have
            continue
        if S_ISREG(told.st_mode):
            found[name] = f"{told.st_size} {told.st_mtime_ns}"
    return found


def _in_listing(folder: UPath, names: Iterable[str]) -> dict[str, str]:
    root = folder.fs._strip_protocol(str(folder))
    listed = folder.fs.find(root, detail=True)
    found = {}
    for name in names:
        told = listed.get(posixpath.normpath(posixpath.join(root, name)))
        if told:
            version = next((told[key] for key in VERSIONS if told.get(key)), "")
            found[name] = f"{told['size']} {version}"
    return found
