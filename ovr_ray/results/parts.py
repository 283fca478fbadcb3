"""Predictions of very many images: a folder of parts, each written whole by the worker that computed it."""

from __future__ import annotations

import hashlib
import io
import json
import os.path
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import pandas as pd
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import progress, stamps
from ovr_ray.joint import JointMetadata, ModelFiles
from ovr_ray.recipe import TableFormat
from ovr_ray.results.predict import SavedModel, in_turn
from ovr_ray.results.worker import answer
from ovr_ray.runs import Record
from ovr_ray.storage import location, read_if_there, read_whole, refresh, side_by_side, write_whole

PART: Final = 2048
"""Images per part: this many are predicted again after an interruption."""

FINGERPRINT: Final = "_predictions.json"
"""File that identifies the parts' model and images; readers of Parquet folders skip names that begin with ``_``."""


@dataclass(frozen=True)
class Parts:
    """The result of a prediction in parts.

    Attributes
    ----------
    folder : UPath
    files : list of UPath
        The parts, in the order of the images.
    images, unreadable : int
        Number of images that this call processed, and how many of them could not be read.
    already : int
        Number of images in parts that already existed and still hold.
    """

    folder: UPath
    files: list[UPath]
    images: int
    unreadable: int
    already: int


def predict_parts(
    model: SavedModel,
    images: pd.DataFrame,
    output: str,
    form: TableFormat = "parquet",
    part_size: int = PART,
    workers: int | None = None,
) -> Parts:
    """Predict into a folder, or resume an interrupted call with the same arguments.

    A part is made again if one of its images has changed since (by size and time of writing, or a bucket's tag), or if
    its file is damaged. Images on web servers are not compared.

    Parameters
    ----------
    model : SavedModel
    images : DataFrame
        The result of :func:`ovr_ray.results.find_images`.
    output : str
        Path or URI of a folder that all nodes see. A part has the columns of :func:`ovr_ray.results.predict`.
    form : {"parquet", "csv"}
    part_size : int
        Images per part.
    workers : int, optional
        Largest number of processes; default: one per GPU, or one per CPU if there is no GPU.

    Returns
    -------
    Parts

    Raises
    ------
    BadInput
        If the folder holds parts of another model or of other images (says what differs), or if a node does not see it.
    """
    folder = location(output).absolute()
    refresh(folder)
    known = versions(images["path"])
    parts = []
    for number, start in enumerate(range(0, len(images), part_size)):
        portion = images.iloc[start : start + part_size]
        digest = _digest(known.get(path, "") for path in portion["path"])
        parts.append(_Part(folder / f"part-{number:05d}.{form}", portion, digest, model.metadata.labels))
    names = _digest(images[["filename", "path"]].itertuples(index=False))
    made_of = {"model": model.digest[:16], "images": len(images), "names": names, "part_size": part_size}
    lacking = _begin(folder, parts, _Fingerprint(**made_of, format=form, parts=[part.digest for part in parts]))
    chunks = [part.images.assign(part=str(part.file)) for part in lacking]
    total = sum(map(len, chunks))
    already = len(images) - total
    unreadable = 0
    if chunks:
        with progress(len(images), already) as advance:
            for _, done in in_turn(model, chunks, _answer_into, workers, folder):
                unreadable += int(done["unreadable"].sum())
                advance(int(done["images"].sum()))
    return Parts(folder, [part.file for part in parts], total, unreadable, already)


def _answer_into(chunk: pd.DataFrame, model: ModelFiles, metadata: JointMetadata) -> pd.DataFrame:
    table = answer(chunk, model, metadata)
    write_table(table, location(chunk["part"].iloc[0]))
    return pd.DataFrame({"images": [len(table)], "unreadable": [int((table.error != "").sum())]})


def write_table(table: pd.DataFrame, file: UPath) -> None:
    """Write predictions, as CSV or Parquet by the file's suffix."""
    if file.suffix == ".csv":
        write_whole(file, table.to_csv(sep=";", index=False))
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        write_whole(file, buffer.getvalue())


@dataclass(frozen=True)
class _Part:
    """A part: its file, its images, the digest of their sizes and times, and the model's labels."""

    file: UPath
    images: pd.DataFrame
    digest: str
    labels: list[str]

    def is_whole(self) -> bool:
        """Return whether its file can be read to the end, and has an answer or an error for each of its images."""
        content = read_whole(self.file)
        numbers = {
            name: kind for label in self.labels for name, kind in ((f"{label}_probability", float), (label, "Int64"))
        }
        types = {"filename": str} | numbers | {"error": str}
        try:
            if self.file.suffix == ".csv":
                table = pd.read_csv(io.BytesIO(content), sep=";", dtype=types, keep_default_na=False, na_values=[""])
            else:
                table = pd.read_parquet(io.BytesIO(content)).astype(numbers)
            is_read = table["error"].fillna("") == ""
            return (
                list(table) == list(types)
                and table["filename"].tolist() == self.images["filename"].tolist()
                and all((table[label].notna() == is_read).all() for label in self.labels)
                and (self.file.suffix != ".csv" or content.endswith(b"\n"))
            )
        except (ValueError, TypeError, LookupError, OSError):  # of pandas and pyarrow
            return False


class _Fingerprint(Record):
    """What parts are made of (:data:`FINGERPRINT`)."""

    model: str
    """Digest of the joint model."""
    images: int
    """Number of images."""
    names: str
    """Digest of their names and paths."""
    part_size: int
    format: TableFormat
    parts: tuple[str, ...] = ()
    """Digest of the sizes and times of each part's images; folders of older versions have none."""


def _digest(items: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item).encode())
    return digest.hexdigest()[:16]


def versions(paths: pd.Series) -> dict[str, str]:
    """Return sizes and times (see :func:`ovr_ray.images.stamps`) by path; those of web servers are not known."""
    found: dict[str, str] = {}
    for _, group in groupby(sorted(paths), key=lambda path: path.split("/")[:3]):  # disk or bucket
        members = list(group)
        root = posixpath.dirname(os.path.commonprefix(members))  # noqa: RUF071  commonpath would spoil s3://
        if not root.startswith(("http:", "https:")):
            names = {path.removeprefix(root).lstrip("/"): path for path in members}
            found |= {names[name]: stamp for name, stamp in stamps(root, names).items()}
    return found


def _begin(folder: UPath, parts: list[_Part], now: _Fingerprint) -> list[_Part]:
    """Write the fingerprint, or compare it with the one that exists; return the parts that have to be made.

    What is there of these is removed before the fingerprint is written, so that every part belongs to it.
    """
    there = {found.name for found in folder.glob("part-*")} if folder.is_dir() else set()
    before = read_if_there(folder / FINGERPRINT)
    if before is None and folder.exists() and (there or not folder.is_dir()):
        unknown = f"holds parts that nobody knows the origin of (no {FINGERPRINT})"
        raise BadInput(Fault(f"--output {folder}", unknown if there else "is a file", "give another folder"))
    made = now.parts if before is None else _compared(folder, before, now)
    was = {part.file: version for part, version in zip(parts, made, strict=True)}

    def is_kept(part: _Part) -> bool:
        return part.file.name in there and was[part.file] == part.digest and part.is_whole()

    lacking = [part for part, kept in zip(parts, side_by_side(is_kept, parts), strict=True) if not kept]
    for part in lacking:
        if part.file.name in there:
            part.file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FINGERPRINT, now.to_json())
    return lacking


def _compared(folder: UPath, text: str, now: _Fingerprint) -> tuple[str, ...]:
    """Return the digests of the parts that are there; raises :class:`BadInput` if they are of something else."""
    where, remedy = f"--output {folder}", "give another folder, or remove this one to predict anew"
    try:
        before = _Fingerprint.from_json(text)
    except ValueError:
        raise BadInput(Fault(where, f"its {FINGERPRINT} is damaged, or another program's", remedy)) from None
    named = {"model": "the model", "images": "how many images", "names": "the images' names or paths"}
    pairs = {name: (getattr(before, name), getattr(now, name)) for name in _Fingerprint.model_fields if name != "parts"}
    if faults := [
        Fault(where, f"its parts differ in {named.get(name, name)}: {was}, and now {new}", remedy)
        for name, (was, new) in pairs.items()
        if was != new
    ]:
        raise BadInput(faults)
    return before.parts if len(before.parts) == len(now.parts) else now.parts
