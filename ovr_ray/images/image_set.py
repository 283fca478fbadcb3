"""All images of a label table, decoded once and shared by all trials in the cluster's memory or in storage."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import ray
from upath import UPath

from ovr_ray import ray_quirks
from ovr_ray.errors import Fault, RunFailed
from ovr_ray.images.labels import LabelTable
from ovr_ray.images.progress import progress
from ovr_ray.images.review import reviewed
from ovr_ray.images.shards import Images, Shard, missing, shards
from ovr_ray.recipe import Data
from ovr_ray.storage import side_by_side, storage_errors

if TYPE_CHECKING:
    from ray.data import Dataset

WINDOW = 8
"""Shards that a stream shuffles together. It reads the next window ahead, and holds no more than these two."""


@dataclass(frozen=True)
class ImageSet:
    """The decoded images of a label table, in the cluster's memory or streamed from storage.

    Attributes
    ----------
    shards : list of Shard
    facts : DataFrame
        As :meth:`Shard.facts` returns them, by row of the label table.
    blocks : list of ObjectRef, optional
        For each shard, its rows (int64, N) and images (uint8, N x C x H x W) in the object store. If None, images are
        streamed from storage.
    notes : tuple of Fault
        As in :class:`LabelTable`.
    """

    shards: list[Shard]
    facts: pd.DataFrame
    blocks: list[ray.ObjectRef[tuple[np.ndarray, np.ndarray]]] | None = None
    notes: tuple[Fault, ...] = ()

    def for_trials(self) -> ImageSet:
        """Return the image set without ``facts``, which trials do not use: each trial holds a copy."""
        return replace(self, facts=self.facts.iloc[:0])

    @property
    def bad(self) -> dict[int, str]:
        """The reasons why images could not be decoded, by row."""
        wrong = self.facts[self.facts.error != ""]
        return dict(zip(wrong.index.tolist(), wrong.error, strict=True))

    @property
    def nbytes(self) -> int:
        """The bytes of all images together."""
        return len(self.facts) * math.prod(self.shards[0].shape)

    def pixel_statistics(self, rows: np.ndarray) -> tuple[list[float], list[float]]:
        """Return the pixels' mean and standard deviation, in 0..1, of every channel over the readable images.

        Parameters
        ----------
        rows : ndarray of int64
            Rows of the label table.
        """
        facts = self.facts.loc[rows]
        facts = facts[facts.error == ""]
        pixels = len(facts) * self.shards[0].data.image_size ** 2
        mean = np.stack(list(facts.sums)).sum(0) / pixels
        variance = np.stack(list(facts.squares)).sum(0) / pixels - mean**2
        return mean.tolist(), np.sqrt(np.maximum(variance, 1e-8)).tolist()

    def windows(self, wanted: np.ndarray, rng: np.random.Generator | None) -> Iterator[Images]:
        """Yield the wanted images in windows that fit in memory: one window of all, or several streamed ones.

        Parameters
        ----------
        wanted : ndarray of bool
            For every row of the label table.
        rng : Generator, optional
            Draws the order of streamed shards. By default their order is always the same.
        """
        if self.blocks is not None:
            yield {row: image for row, image in self._in_memory.items() if wanted[row]}
            return
        selected = [shard for shard in self.shards if wanted[shard.rows].any()]
        order = np.arange(len(selected)) if rng is None else rng.permutation(len(selected))
        portions = np.split(order, range(WINDOW, len(order), WINDOW))

        def read(at: int) -> Images:
            shard = selected[at]
            images = shard.images(wanted, verify=shard.file not in self._verified)
            self._verified.add(shard.file)
            return images

        with ThreadPoolExecutor(WINDOW) as pool:
            pending = [pool.submit(read, at) for at in portions[0]]
            for portion in portions[1:]:
                window = _together(pending)
                pending = [pool.submit(read, at) for at in portion]
                yield window
                del window  # otherwise three windows would be in memory while the next one is awaited
            yield _together(pending)

    @cached_property
    def _verified(self) -> set[UPath]:
        """The files of the shards that this process has verified: once per process is enough."""
        return set()

    @cached_property
    def _in_memory(self) -> Images:
        """Views of the blocks in shared memory, without a copy, in the order of the label table."""
        return dict(sorted(pair for block in ray.get(self.blocks) for pair in _by_row(*block)))


def prepare(table: LabelTable, data: Data, storage: str) -> list[Shard]:
    """Decode every image that no shard below ``storage`` has, on the whole cluster.

    Parameters
    ----------
    table : LabelTable
    data : Data
        Its paths must be valid on every node.
    storage : str
        Folder or URI that every node can write to.

    Returns
    -------
    list of Shard
        All shards of the label table.

    Raises
    ------
    RunFailed
        If a shard cannot be written. The next run uses the shards that were written.
    """
    all_shards = shards(table, data, storage)
    to_make = missing(all_shards)
    if not to_make:
        return all_shards
    done = len(table.files) - sum(len(shard.rows) for shard in to_make)
    with progress(len(table.files), done, "images decoded") as advance:
        for result in _on_cluster(to_make, _make).iter_batches(batch_size=None):
            for failure in filter(None, result["failure"]):
                raise RunFailed(f"decoded images cannot be written to {to_make[0].file.parent}: {failure}")
            advance(int(result["images"].sum()))
    return all_shards


def load(table: LabelTable, data: Data, storage: str, memory: float) -> tuple[ImageSet, LabelTable]:
    """Prepare all images, and put those of train and val into the object store if they fit.

    Parameters
    ----------
    table, data, storage
        As in :func:`prepare`.
    memory : float
        Bytes of a node's object store that the images may fill. If they need more, they are streamed from ``storage``.

    Returns
    -------
    ImageSet
    LabelTable
        The table in which bad images count for no task, with notes.

    Raises
    ------
    BadInput
        As :func:`~ovr_ray.images.review.reviewed` does.
    RunFailed
        As in :func:`prepare`.
    """
    all_shards = prepare(table, data, storage)
    facts = pd.concat(side_by_side(Shard.facts, all_shards)).set_index("row").sort_index()
    table = reviewed(table, facts, data)
    images = ImageSet(all_shards, facts, notes=table.notes)
    wanted = (table.splits != "test").to_numpy()
    if wanted.sum() * data.channels * data.image_size**2 > memory:
        return images, table
    selected = [shard for shard in all_shards if wanted[shard.rows].any()]
    return replace(images, blocks=side_by_side(partial(_block, wanted=wanted), selected)), table


def _on_cluster(given: list[Shard], work: Callable[[dict[str, Any]], dict[str, np.ndarray]]) -> Dataset:
    """Apply ``work`` to each shard in a Ray task of its own, at most one task per CPU at the same time."""
    from ray import data  # seconds of imports

    data.DataContext.get_current().enable_progress_bars = False
    ray_quirks.quiet(ray_quirks.CHATTY, logging.CRITICAL)  # importing ray.data sets levels of its own
    cpus = int(ray.cluster_resources().get("CPU", 1))
    tasks = data.TaskPoolStrategy(size=max(1, min(len(given), cpus)))
    items = data.from_items([{"shard": pickle.dumps(shard)} for shard in given], override_num_blocks=len(given))
    return items.map_batches(work, batch_size=None, compute=tasks)


def _block(shard: Shard, wanted: np.ndarray) -> ray.ObjectRef[tuple[np.ndarray, np.ndarray]]:
    """Put the wanted rows and images of a shard into the object store.

    The driver reads them: tasks would need processes of their own, which import torch for seconds.
    """
    images = shard.images(wanted)
    return ray.put((np.array(list(images)), np.stack(list(images.values()))))


def _make(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    given, failure = _shards_in(batch), ""
    try:
        for shard in given:
            shard.make()
    except storage_errors() as error:
        failure = getattr(error, "strerror", None) or str(error)
    return {"images": np.array([sum(len(shard.rows) for shard in given)]), "failure": np.array([failure], object)}


def _shards_in(batch: dict[str, np.ndarray]) -> list[Shard]:
    return [pickle.loads(shard) for shard in batch["shard"]]


def _together(pending: list[Future[Images]]) -> Images:
    """Wait for the shards of a window; their order is that of the list."""
    return {row: image for images in pending for row, image in images.result().items()}


def _by_row(rows: np.ndarray, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return zip(rows.tolist(), images, strict=True)
