"""All images of a label table, decoded once and shared by every trial: in the cluster's memory, or on disk."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.images.labels import SHOWN, LabelTable, empty_part_faults
from ovr_ray.images.progress import progress
from ovr_ray.images.shards import Shard, missing, shards
from ovr_ray.recipe import Data
from ovr_ray.storage import storage_errors

Images = dict[int, np.ndarray]
"""Row of the label table -> image, uint8 (C, H, W)."""

WINDOW = 8
"""Shards that are shuffled together where images are streamed; as many again are read ahead, and no more is held."""

NAMED = 200
"""How many bad images a fault names."""

AT_ONCE = 16
"""Shards whose facts are read at a time: each is a round trip or two to a bucket."""


@dataclass(frozen=True)
class ImageSet:
    """The decoded images of a label table, in the cluster's memory or streamed from storage.

    Attributes
    ----------
    shards : list of Shard
    facts : DataFrame
        By row of the label table: ``error``, ``sums`` and ``squares`` as in :meth:`Shard.facts`.
    blocks : list of ObjectRef, optional
        In the object store, ``row`` (int64, N) and ``image`` (uint8, N x C x H x W) of each shard. None: images are
        streamed.
    """

    shards: list[Shard]
    facts: pd.DataFrame
    blocks: list[ray.ObjectRef[tuple[np.ndarray, np.ndarray]]] | None = None

    def for_trials(self) -> ImageSet:
        """Without what trials have no use for: each holds a copy."""
        return replace(self, facts=self.facts.iloc[:0])

    @property
    def bad(self) -> dict[int, str]:
        """Why a row's image could not be decoded."""
        wrong = self.facts[self.facts.error != ""]
        return dict(zip(wrong.index.tolist(), wrong.error, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes, of all images together."""
        return len(self.facts) * math.prod(self.shards[0].shape)

    def pixel_statistics(self, rows: np.ndarray) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of every channel, in 0..1, over the readable images among these rows."""
        facts = self.facts.loc[rows]
        facts = facts[facts.error == ""]
        pixels = len(facts) * self.shards[0].size ** 2
        mean = np.stack(list(facts.sums)).sum(0) / pixels
        variance = np.stack(list(facts.squares)).sum(0) / pixels - mean**2
        return mean.tolist(), np.sqrt(np.maximum(variance, 1e-8)).tolist()

    def windows(self, wanted: np.ndarray, rng: np.random.Generator | None) -> Iterator[Images]:
        """The wanted rows in portions that fit in memory: all at once, or streamed, in an order drawn anew.

        Parameters
        ----------
        wanted : ndarray of bool
            Of every row of the label table.
        rng : Generator, optional
            Draws the order of shards; without it they come as they are.
        """
        if self.blocks is not None:
            yield {row: image for row, image in self._held.items() if wanted[row]}
            return
        some = [shard for shard in self.shards if wanted[shard.rows].any()]
        order = np.arange(len(some)) if rng is None else rng.permutation(len(some))
        portions = np.split(order, range(WINDOW, len(order), WINDOW))

        def read(portion: np.ndarray) -> Images:
            window: Images = {}
            for shard in (some[at] for at in portion):
                window |= _by_row(*shard.images(wanted, verify=shard.file not in self._verified))
                self._verified.add(shard.file)
            return window

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(read, portions[0])
            for portion in portions[1:]:
                window, coming = coming.result(), pool.submit(read, portion)
                yield window
                del window  # or three windows would be held while the next is awaited
            yield coming.result()

    @cached_property
    def _verified(self) -> set[UPath]:
        """The shards that this process has held against their checksums: once is enough."""
        return set()

    @cached_property
    def _held(self) -> Images:
        """Views of the blocks in shared memory, in the order of the label table; nothing is copied."""
        return dict(sorted(pair for block in ray.get(self.blocks) for pair in _by_row(*block)))


def prepare(table: LabelTable, data: Data, storage: str) -> list[Shard]:
    """Decode every image that no shard below ``storage`` has, on all of the cluster.

    Parameters
    ----------
    table : LabelTable
    data : Data
        Paths as every node understands them.
    storage : str

    Raises
    ------
    RunFailed
        If the storage takes no more; what is in it already is found again.
    """
    every = shards(table, data, storage)
    lacking = missing(every)
    if not lacking:
        return every
    already = len(table.files) - sum(len(shard.rows) for shard in lacking)
    with progress(len(table.files), already, "images decoded") as advance:
        for answer in _on_cluster(lacking, _make).iter_batches(batch_size=None):
            for failure in filter(None, answer["failure"]):
                raise RunFailed(f"decoded images cannot be written to {lacking[0].file.parent}: {failure}")
            advance(int(answer["images"].sum()))
    return every


def load(table: LabelTable, data: Data, storage: str, memory: float) -> tuple[ImageSet, LabelTable]:
    """Prepare all images, and put those of train and validation into the object store, if they fit.

    Parameters
    ----------
    memory : float
        Bytes of a node's object store that images may fill; more are streamed from ``storage``.

    Returns
    -------
    ImageSet
    LabelTable
        Bad images count for no task in it.

    Raises
    ------
    BadInput
        Names every bad image, if ``on_bad_image`` is ``error``; or the tasks that have no image of one class left.
    """
    every = prepare(table, data, storage)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        facts = pd.concat(pool.map(Shard.facts, every)).set_index("row").sort_index()
    images = ImageSet(every, facts)
    if images.bad and data.on_bad_image == "error":
        raise BadInput(bad_images_fault(table, images.bad))
    table = table.without(images.bad)
    if faults := list(empty_part_faults(table, data)):
        raise BadInput(faults)
    wanted = (table.parts != "test").to_numpy()
    if wanted.sum() * data.channels * data.image_size**2 > memory:
        return images, table
    return replace(images, blocks=list(_blocks(every, wanted))), table


def bad_images_fault(table: LabelTable, bad: dict[int, str]) -> Fault:
    """Names all bad images, from row -> reason; of very many the first, and how often each reason occurs."""
    lines = [f"    {table.files.iloc[row]}: {reason}" for row, reason in sorted(bad.items())]
    if len(lines) > NAMED:
        counts = Counter(reason.partition(":")[0] for reason in bad.values()).most_common(SHOWN)
        more = ", ".join(f"{count} in all {reason!r}" for reason, count in counts)
        lines[NAMED:] = [f"    and {len(lines) - NAMED} more: {more}"]
    problem = f"{len(bad)} of {len(table.files)} images cannot be decoded:\n" + "\n".join(lines)
    return Fault("data.images", problem, "mend or remove them, or set data.on_bad_image: skip")


def _on_cluster(some: list[Shard], work: Callable[[dict[str, Any]], dict[str, np.ndarray]]) -> ray.data.Dataset:
    """A task a shard, at most one for each CPU at a time."""
    tasks = ray.data.TaskPoolStrategy(size=_tasks(some))
    items = ray.data.from_items([{"shard": pickle.dumps(shard)} for shard in some], override_num_blocks=len(some))
    return items.map_batches(work, batch_size=None, compute=tasks)


def _tasks(some: list[Shard]) -> int:
    """How many work at a time: a task that claims no CPU has a process of its own, however many there are."""
    return max(1, min(len(some), int(ray.cluster_resources().get("CPU", 1))))


def _blocks(every: list[Shard], wanted: np.ndarray) -> Iterator[ray.ObjectRef]:
    """The wanted rows of each shard, being read; no CPU is claimed, as trials may hold every CPU when some are lost."""
    some = [shard for shard in every if wanted[shard.rows].any()]
    read, shared, count = ray.remote(num_cpus=0)(_read), ray.put(wanted), _tasks(some)
    for portion in (some[start::count] for start in range(count)):
        blocks = read.options(num_returns=len(portion)).remote(portion, shared)
        yield from blocks if isinstance(blocks, list) else [blocks]


def _read(some: list[Shard], wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One after the other, so that no more than one is held."""
    for shard in some:
        yield shard.images(wanted)


def _make(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    some, failure = _shards_in(batch), ""
    try:
        for shard in some:
            shard.make()
    except storage_errors() as error:
        failure = getattr(error, "strerror", None) or str(error)
    return {"images": np.array([sum(len(shard.rows) for shard in some)]), "failure": np.array([failure], object)}


def _shards_in(batch: dict[str, np.ndarray]) -> list[Shard]:
    return [pickle.loads(shard) for shard in batch["shard"]]


def _by_row(rows: np.ndarray, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return zip(rows.tolist(), images, strict=True)
