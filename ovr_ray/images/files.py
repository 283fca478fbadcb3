"""Stamps that show which image files exist and whether one has changed."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

from upath import UPath

VERSIONS = ("ETag", "etag", "mtime", "LastModified", "updated", "created")
"""Keys under which filesystems list a file's version: tags (S3, Google, HTTP) before times."""


def stamps(root: str, names: Iterable[str]) -> dict[str, str]:
    """Return size and version (time of writing, or a bucket's tag) of each of these files that exists.

    Parameters
    ----------
    root : str
        Folder or URI. A bucket is listed once, because a request per object would take one round trip each.
    names : iterable of str
        Paths below ``root``.

    Returns
    -------
    dict of str to str
        Stamp of each existing file, by name.
    """
    folder = UPath(root)
    return _on_disk(str(folder), names) if isinstance(folder, Path) else _in_listing(folder, names)


def _on_disk(folder: str, names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116  making a path object takes longer than the stat
        except (OSError, ValueError):  # ValueError: not a possible file name
            continue
        if S_ISREG(status.st_mode):
            found[name] = f"{status.st_size} {status.st_mtime_ns}"
    return found


def _in_listing(folder: UPath, names: Iterable[str]) -> dict[str, str]:
    root = folder.fs._strip_protocol(str(folder))
    listed = folder.fs.find(root, detail=True)
    found = {}
    for name in names:
        entry = listed.get(posixpath.normpath(posixpath.join(root, name)))
        if entry:
            version = next((entry[key] for key in VERSIONS if entry.get(key)), "")
            found[name] = f"{entry['size']} {version}"
    return found
