"""What one process of a batch prediction does: read and decode ahead, infer, answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pandas as pd
import ray
import torch
from upath import UPath

from ovr_ray.images import BadImage, read_image
from ovr_ray.joint import load_torchscript
from ovr_ray.model import keep_pages

BATCH = 32
AHEAD = 2
"""Batches that are read and decoded while one is worked on: what a worker holds in memory is bounded by them."""
MAX_READERS = 32


def answer(images: pd.DataFrame, file: str, digest: str) -> pd.DataFrame:
    """Probabilities and decisions for some images, with the CPUs and the GPU that Ray gave this process.

    Parameters
    ----------
    images : DataFrame
        ``filename``, as it is told, and ``path``, an absolute path or a URI.
    file, digest : str
        The joint model's file, and what tells it from another under that name.

    Returns
    -------
    DataFrame
        A row an image, in their order; see :func:`ovr_ray.results.predict`.
    """
    cpus, device = _lent()
    model, metadata = _loaded(file, digest, device)
    color = metadata["recipe"]["data"]["color"]
    batches = _decoded(images["path"].tolist(), color, min(2 * cpus + 2, MAX_READERS))
    rows = [_infer(model, batch, len(metadata["labels"])) for batch in batches]
    probability = np.concatenate([probability for probability, _ in rows])
    table = pd.DataFrame({"filename": images["filename"].to_numpy()})
    error = pd.Series([error for _, errors in rows for error in errors], dtype=object)
    decision = probability >= model.thresholds.cpu().numpy()
    for column, label in enumerate(metadata["labels"]):
        table[f"{label}_probability"] = probability[:, column]
        table[label] = pd.Series(decision[:, column].astype(int), dtype="Int64").where(error == "")
    return table.assign(error=error)


def _lent() -> tuple[int, str]:
    """CPUs and device of this Ray task, torch told to use as many threads; without Ray, those of the process."""
    is_cuda = torch.cuda.is_available()
    if not ray.is_initialized():
        return torch.get_num_threads(), "cuda" if is_cuda else "cpu"
    lent = ray.get_runtime_context().get_assigned_resources()
    cpus = max(1, int(lent.get("CPU", 1)))
    torch.set_num_threads(cpus)
    keep_pages()  # 1.7 times the images/s on a CPU; only here, where the process is ours
    return cpus, "cuda" if is_cuda and lent.get("GPU") else "cpu"


@lru_cache(maxsize=1)
def _loaded(file: str, digest: str, device: str) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """The model of this process; a changed file has another digest and is loaded anew."""
    return load_torchscript(UPath(file).read_bytes(), device)


def _decoded(
    paths: Sequence[str], color: Literal["gray", "rgb"], readers: int
) -> Iterator[list[np.ndarray | BadImage]]:
    """Batches in order; :data:`AHEAD` more are read by threads meanwhile (Pillow and storage wait without Python)."""
    waiting: deque[list[Future[np.ndarray | BadImage]]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        for start in range(0, len(paths), BATCH):
            waiting.append([pool.submit(_read, path, color) for path in paths[start : start + BATCH]])
            if len(waiting) > AHEAD:
                yield [image.result() for image in waiting.popleft()]
        while waiting:
            yield [image.result() for image in waiting.popleft()]


def _read(path: str, color: Literal["gray", "rgb"]) -> np.ndarray | BadImage:
    try:
        return read_image(path, color)
    except BadImage as error:
        return error


@torch.inference_mode()
def _infer(
    model: torch.jit.ScriptModule, images: list[np.ndarray | BadImage], labels: int
) -> tuple[np.ndarray, list[str]]:
    """Probabilities, float32 (N, labels), NaN where an image could not be read, and why."""
    probability = np.full((len(images), labels), np.nan, np.float32)
    good = {place: image for place, image in enumerate(images) if not isinstance(image, BadImage)}
    device = model.thresholds.device
    for _, places in groupby(sorted(good, key=lambda i: good[i].shape), key=lambda i: good[i].shape):
        alike = list(places)
        stacked = torch.from_numpy(np.stack([good[i] for i in alike]))
        probability[alike] = model(stacked.to(device)).cpu().numpy()
    return probability, [str(image) if isinstance(image, BadImage) else "" for image in images]
