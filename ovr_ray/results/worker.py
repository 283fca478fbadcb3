"""The work of one process of a batch prediction: read and decode ahead, predict."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Final

import numpy as np
import pandas as pd
import ray
import torch

from ovr_ray import cluster
from ovr_ray.images import BadImage, read_image
from ovr_ray.joint import Engine, JointMetadata, ModelFiles
from ovr_ray.recipe import Data
from ovr_ray.training import allow_tf32, is_out_of_memory, set_up_process

BATCH: Final = 32
"""Images that are predicted at a time."""

AHEAD: Final = 2
"""Batches that are read and decoded while one is predicted; they bound the memory of a worker."""

MAX_READERS: Final = 32
"""Threads that read and decode."""


def answer(images: pd.DataFrame, model: ModelFiles, metadata: JointMetadata) -> pd.DataFrame:
    """Predict some images with the CPUs and the GPU that Ray assigned to this process.

    Parameters
    ----------
    images : DataFrame
        ``filename``, which the result repeats, and ``path``, an absolute path or a URI.
    model : ModelFiles
    metadata : JointMetadata

    Returns
    -------
    DataFrame
        One row per image, in the given order; see :func:`ovr_ray.results.predict`.
    """
    cpus, device = _resources()
    engine = _loaded(model, device, cpus)
    data = Data.model_validate(metadata.recipe["data"])
    batches = _decoded(images["path"].tolist(), data, min(2 * cpus + 2, MAX_READERS))
    rows = [_infer(engine, batch, len(metadata.labels)) for batch in batches]
    probability = np.concatenate([probability for probability, _ in rows])
    table = pd.DataFrame({"filename": images["filename"].to_numpy()})
    error = pd.Series([error for _, errors in rows for error in errors], dtype=object)
    decision = probability >= np.array(metadata.thresholds, np.float32)
    for column, label in enumerate(metadata.labels):
        table[f"{label}_probability"] = probability[:, column]
        table[label] = pd.Series(decision[:, column].astype(int), dtype="Int64").where(error == "")
    return table.assign(error=error)


def _resources() -> tuple[int, torch.device]:
    """Return the CPUs and the device of this Ray task; without Ray, those of the process, which stays as it is."""
    if not ray.is_initialized():
        return torch.get_num_threads(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share = cluster.assigned_here()
    device = set_up_process(share.cpus, share.gpus)
    return torch.get_num_threads(), device if share.gpus else torch.device("cpu")


@lru_cache(maxsize=1)
def _loaded(model: ModelFiles, device: torch.device, threads: int) -> Engine:
    """Return the joint model of this process, which computes in float32; one with another digest is loaded again."""
    allow_tf32("fp32")
    return model.engine(device, threads)


def _decoded(paths: Sequence[str], data: Data, readers: int) -> Iterator[list[np.ndarray | BadImage]]:
    """Yield batches in order, while threads read :data:`AHEAD` more without the interpreter's lock."""
    waiting: deque[list[Future[np.ndarray | BadImage]]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        for start in range(0, len(paths), BATCH):
            waiting.append([pool.submit(_read, path, data) for path in paths[start : start + BATCH]])
            if len(waiting) > AHEAD:
                yield [image.result() for image in waiting.popleft()]
        while waiting:
            yield [image.result() for image in waiting.popleft()]


def _read(path: str, data: Data) -> np.ndarray | BadImage:
    try:
        return read_image(path, data, data.image_size)
    except BadImage as error:
        return error


def _infer(engine: Engine, images: list[np.ndarray | BadImage], labels: int) -> tuple[np.ndarray, list[str]]:
    """Return probabilities, float32 (N, labels), NaN where an image could not be read, and the reasons."""
    probability = np.full((len(images), labels), np.nan, np.float32)
    good = {place: image for place, image in enumerate(images) if not isinstance(image, BadImage)}
    if good:
        probability[list(good)] = _answered(engine, np.stack(list(good.values())))
    return probability, [str(image) if isinstance(image, BadImage) else "" for image in images]


def _answered(engine: Engine, images: np.ndarray) -> np.ndarray:
    """Return the probabilities of a batch, which is halved as long as memory does not suffice."""
    try:
        return engine(images)
    except RuntimeError as error:
        if len(images) == 1 or not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    half = len(images) // 2
    return np.concatenate([_answered(engine, images[:half]), _answered(engine, images[half:])])
