"""Stamps that show which image files exist and whether one has changed."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from stat import S_ISREG

from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.storage import listed, location

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
    folder = location(root)
    return _on_disk(str(folder), names) if isinstance(folder, Path) else _in_listing(folder, names)


def alike(name: str, root: str) -> str:
    """Return, for a file that does not exist, which file below the folder may be meant; empty if none is alike.

    Names are alike that differ only in capitals, suffix, spaces at the ends, backslashes, or form of Unicode.
    """
    for found in listed(location(root)):
        if found != name and _bare(found) == _bare(name):
            forms = {form: unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
            form = next((form for form, spelled in forms.items() if spelled == found), None)
            spelled = f", which the folder spells in another form of Unicode ({form})" if form else ""
            return f"did you mean {found!r}{spelled}?"
    return ""


def _bare(name: str) -> str:
    plain = unicodedata.normalize("NFC", name.replace("\\", "/").strip())
    return posixpath.splitext(posixpath.normpath(plain))[0].casefold()


def refuse_moved(root: str, names: Sequence[str]) -> None:
    """Raise :class:`BadInput` if a folder holds none of a run's images, which then must be somewhere else."""
    if len(names) and not stamps(root, names):
        problem = f"holds none of the run's {len(names)} images, such as {next(iter(names))!r}"
        raise BadInput(Fault(root, problem, "bring them back, or say where they are now: --images DIR"))


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
