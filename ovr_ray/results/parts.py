"""Predictions of very many images: a folder of parts, each written whole by the worker that computed it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import progress
from ovr_ray.results.predict import Model, in_turn
from ovr_ray.results.worker import answer
from ovr_ray.run_folder import refresh, write_whole

Format = Literal["csv", "parquet"]

PART = 2048
"""Images of a part: what is lost, and done again, when a prediction is interrupted."""

FINGERPRINT = "_predictions.json"
"""What the parts are of; readers of folders full of Parquet skip names that begin with ``_``."""


@dataclass(frozen=True)
class Parts:
    """What a prediction in parts left behind.

    Attributes
    ----------
    folder : UPath
    files : list of UPath
        The parts, in the images' order.
    images, unreadable : int
        Predicted by this call, and those of them that could not be read.
    already : int
        Images of parts that were there.
    """

    folder: UPath
    files: list[UPath]
    images: int
    unreadable: int
    already: int


def predict_parts(
    model: Model,
    images: pd.DataFrame,
    output: str,
    form: Format = "parquet",
    part_size: int = PART,
    workers: int | None = None,
) -> Parts:
    """Predict into a folder, or go on where an earlier call with the same arguments was interrupted.

    Parameters
    ----------
    model : Model
    images : DataFrame
        As :func:`ovr_ray.results.find_images` gives it.
    output : str
        Path or URI of the folder, which all nodes see. Its tables are those of :func:`ovr_ray.results.predict`.
    form : {"parquet", "csv"}
    part_size : int
        Images a part.
    workers : int, optional
        At most so many processes; default: one a GPU, or one a CPU where there is none.

    Returns
    -------
    Parts

    Raises
    ------
    BadInput
        If the folder holds parts of something else, says what differs; or if a node does not see it.
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
    """Write predictions whole, as CSV or Parquet by the file's suffix."""
    if file.suffix == ".csv":
        write_whole(file, table.to_csv(sep=";", index=False))
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        write_whole(file, buffer.getvalue())


def _fingerprint(model: Model, images: pd.DataFrame, form: Format, part_size: int) -> dict[str, Any]:
    names = hashlib.sha256()
    for pair in images[["filename", "path"]].itertuples(index=False):
        names.update(json.dumps(pair).encode())
    told = {"images": len(images), "names": names.hexdigest()[:16], "part_size": part_size, "format": form}
    return {"model": model.digest[:16], **told}


def _begin(folder: UPath, fingerprint: dict[str, Any]) -> None:
    """Write what the parts will be of, or find the same there."""
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
