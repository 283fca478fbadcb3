"""Predictions of very many images: a folder of parts, each written whole by the worker that computed it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import progress
from ovr_ray.recipe import TableFormat
from ovr_ray.results.predict import SavedModel, in_turn
from ovr_ray.results.worker import answer
from ovr_ray.storage import refresh, write_whole

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
        Number of images in parts that already existed.
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
    folder = UPath(output).absolute()
    refresh(folder)
    _begin(folder, _fingerprint(model, images, form, part_size))
    count = -(-len(images) // part_size)
    files = [folder / f"part-{number:05d}.{form}" for number in range(count)]
    there = {file.name for file in folder.glob(f"part-*.{form}")}
    chunks = [
        images.iloc[number * part_size : (number + 1) * part_size].assign(part=str(file))
        for number, file in enumerate(files)
        if file.name not in there
    ]
    total = sum(map(len, chunks))
    already = len(images) - total
    unreadable = 0
    if chunks:
        with progress(len(images), already) as advance:
            for _, done in in_turn(model, chunks, _answer_into, workers, folder):
                unreadable += int(done["unreadable"].sum())
                advance(int(done["images"].sum()))
    return Parts(folder, files, total, unreadable, already)


def _answer_into(chunk: pd.DataFrame, file: str, digest: str) -> pd.DataFrame:
    table = answer(chunk, file, digest)
    write_table(table, UPath(chunk["part"].iloc[0]))
    return pd.DataFrame({"images": [len(table)], "unreadable": [int((table.error != "").sum())]})


def write_table(table: pd.DataFrame, file: UPath) -> None:
    """Write predictions, as CSV or Parquet by the file's suffix."""
    if file.suffix == ".csv":
        write_whole(file, table.to_csv(sep=";", index=False))
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        write_whole(file, buffer.getvalue())


def _fingerprint(model: SavedModel, images: pd.DataFrame, form: TableFormat, part_size: int) -> dict[str, Any]:
    names = hashlib.sha256()
    for pair in images[["filename", "path"]].itertuples(index=False):
        names.update(json.dumps(pair).encode())
    digests = {"model": model.digest[:16], "images": len(images), "names": names.hexdigest()[:16]}
    return {**digests, "part_size": part_size, "format": form}


def _begin(folder: UPath, fingerprint: dict[str, Any]) -> None:
    """Write the fingerprint of the parts, or compare it with the one that exists."""
    file = folder / FINGERPRINT
    if file.exists():
        _refuse_differences(folder, json.loads(file.read_text()), fingerprint)
    elif folder.exists() and (not folder.is_dir() or next(iter(folder.glob("part-*")), None)):
        problem = f"holds parts that nobody knows the origin of (no {FINGERPRINT})" if folder.is_dir() else "is a file"
        raise BadInput(Fault(f"--output {folder}", problem, "give another folder"))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(fingerprint, indent=1))


def _refuse_differences(folder: UPath, before: dict[str, Any], now: dict[str, Any]) -> None:
    where = f"--output {folder}"
    remedy = "give another folder, or remove this one to predict anew"
    named = {"model": "the model", "images": "how many images", "names": "the images' names or paths"}
    differing = [key for key in now if before.get(key) != now[key]]
    if faults := [
        Fault(where, f"its parts differ in {named.get(key, key)}: {before.get(key)}, and now {now[key]}", remedy)
        for key in differing
    ]:
        raise BadInput(faults)
