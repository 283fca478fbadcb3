"""Batch prediction with a joint model, on Ray Data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from upath import UPath

from ovr_ray import cluster
from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import SUFFIXES, BadImage, read_image
from ovr_ray.joint import load_torchscript
from ovr_ray.recipe import Recipe, absolute, parse
from ovr_ray.run_folder import RunFolder

BATCH = 32
IMAGES_PER_WORKER = 128
"""A further worker is started for so many images more, up to one a CPU or GPU; fewer images start no cluster."""


class Model:
    """A joint model's file, what it says of itself, and the run folder that it lies in, if it does.

    Parameters
    ----------
    path : str
        Of a ``joint.pt`` or of a run folder.

    Raises
    ------
    BadInput
        If there is none, or it is not a joint model.
    """

    def __init__(self, path: str) -> None:
        self.file = UPath(path).absolute()
        if self.file.is_dir():
            self.file = self.file / "joint.pt"
            if not self.file.exists() and (self.file.parent / "recipe.yaml").exists():
                raise BadInput(Fault(path, "this run has no joint.pt yet", f"ovr-ray combine {path}"))
        if not self.file.exists():
            raise BadInput(Fault(path, "no such model", "give a joint.pt, or a run folder that has one"))
        content = self.file.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        _, self.metadata = load_torchscript(content)
        is_run = (self.file.parent / "recipe.yaml").exists()
        self.run = RunFolder(self.file.parent) if is_run else None

    def recipe(self) -> Recipe:
        """The one that the model was made with."""
        return parse(self.metadata["recipe"], str(self.file))


def find_images(paths: Sequence[str]) -> list[str]:
    """Image files, folders searched through; raises :class:`BadInput` for what is not there or has no image."""
    files, faults = [], []
    for given in paths:
        path = UPath(given)
        if path.is_dir():
            found = sorted(str(f) for f in path.rglob("*") if f.suffix.lower() in SUFFIXES)
            files += found
            if not found:
                faults.append(Fault(given, "no image in this folder", f"images end in {', '.join(SUFFIXES)}"))
        elif path.exists():
            files.append(str(path))
        else:
            faults.append(Fault(given, "no such file or folder"))
    if faults:
        raise BadInput(faults)
    return files


def predict(model: Model, files: Sequence[str], root: str = "") -> pd.DataFrame:
    """Probabilities and decisions for image files.

    Parameters
    ----------
    model : Model
    files : sequence of str
        Paths or URIs, below ``root`` if it is given.

    Returns
    -------
    DataFrame
        A row a file, in their order: ``filename``, for every label ``<label>_probability`` (float) and ``<label>``
        (0/1), and ``error``: why a file could not be read; its other cells are empty.
    """
    # workers have a current folder of their own
    paths = [absolute(f"{root}/{file}" if root else file) for file in files]
    rows = pd.DataFrame({"row": range(len(files)), "filename": list(files), "path": paths})
    if len(files) <= IMAGES_PER_WORKER and not (ray.is_initialized() or os.environ.get("RAY_ADDRESS")):
        table = _predicted_here(model, rows)
    else:
        with cluster.connected():
            table = _predicted_by_workers(model, rows)
    table = table.sort_values("row", ignore_index=True).drop(columns="row")
    return table[[*table.columns.drop("error"), "error"]]


def _predicted_here(model: Model, rows: pd.DataFrame) -> pd.DataFrame:
    """A few images are answered before a cluster would have started."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = [rows.iloc[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    columns = [{str(name): batch[name].to_numpy() for name in batch} for batch in batches]
    answers: list[pd.DataFrame] = [_predict_batch(batch, str(model.file), model.digest, device) for batch in columns]
    return pd.concat(answers)


def _predicted_by_workers(model: Model, rows: pd.DataFrame) -> pd.DataFrame:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    places = gpus or int(ray.cluster_resources().get("CPU", 1))
    batches = [rows.iloc[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    dataset = ray.data.from_pandas(batches).map_batches(
        partial(_predict_in_worker, file=str(model.file), digest=model.digest),
        batch_size=BATCH,
        compute=ray.data.TaskPoolStrategy(size=max(1, min(places, len(rows) // IMAGES_PER_WORKER))),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    return dataset.to_pandas()


def _predict_in_worker(batch: dict[str, np.ndarray], file: str, digest: str) -> pd.DataFrame:
    """Where Ray put it, with the CPU that Ray gave it."""
    torch.set_num_threads(1)
    return _predict_batch(batch, file, digest, "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def _loaded(file: str, digest: str, device: str) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """The model of this process; a changed file has another digest and is loaded anew."""
    return load_torchscript(UPath(file).read_bytes(), device)


@torch.inference_mode()
def _predict_batch(batch: dict[str, np.ndarray], file: str, digest: str, device: str) -> pd.DataFrame:
    model, metadata = _loaded(file, digest, device)
    images: dict[int, np.ndarray] = {}
    table = pd.DataFrame({"row": batch["row"], "filename": batch["filename"], "error": ""})
    for place, path in enumerate(batch["path"]):
        try:
            images[place] = read_image(path, metadata["recipe"]["data"]["color"])
        except BadImage as error:
            table.loc[place, "error"] = str(error)
    probability = np.full((len(table), len(metadata["labels"])), np.nan, np.float32)
    for _, places in groupby(sorted(images, key=lambda i: images[i].shape), key=lambda i: images[i].shape):
        alike = list(places)
        stacked = torch.from_numpy(np.stack([images[i] for i in alike]))
        probability[alike] = model(stacked.to(device)).cpu().numpy()
    decision = probability >= model.thresholds.cpu().numpy()
    for column, label in enumerate(metadata["labels"]):
        table[f"{label}_probability"] = probability[:, column]
        table[label] = pd.Series(decision[:, column].astype(int), dtype="Int64").where(table.error == "")
    return table


def answers_of(table: pd.DataFrame, labels: Sequence[str]) -> Table:
    """For people: a row an image, a column a label."""
    told = Table(box=SIMPLE_HEAD)
    for column in ("image", *labels):
        told.add_column(column, justify="left" if column == "image" else "right", overflow="fold")
    for _, row in table.iterrows():
        if row.error:
            told.add_row(escape(f"{row.filename}: {row.error}"))
        else:
            answers = (f"{'yes' if row[label] else 'no'} {row[f'{label}_probability']:.3f}" for label in labels)
            told.add_row(escape(row.filename), *answers)
    return told
