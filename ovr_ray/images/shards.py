"""Decoded images on disk: Parquet files that no later run has to decode again.

A shard is named after all that its pixels follow from: folder, names, sizes and times of its image files, and size and
colour of what is stored. So a corrected label or another split decodes nothing again, a changed image only its shard,
and a shard that is there is the right one. Parquet's checksums tell a damaged one, which is made again. All of
``<storage>/_images`` may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from ovr_ray.images.decoding import BadImage, UnreadableImage, decode, read_file
from ovr_ray.images.files import stamps
from ovr_ray.images.labels import LabelTable
from ovr_ray.recipe import Data
from ovr_ray.storage import storage_errors, write_whole

SHARD_BYTES = 32 << 20
"""Pixels of a shard, at most: enough for a disk or a bucket to be read at full speed, few enough to be mixed well."""

READ_AHEAD = 16
"""Image files that are read at a time: a bucket answers after tens of milliseconds."""

LAYOUT = 1
"""Counts up when the decoder, or what a shard holds, changes."""


@dataclass(frozen=True)
class Shard:
    """Some images of a label table, decoded, on disk or still to be made.

    Attributes
    ----------
    file : UPath
    root : str
        The folder of the image files.
    filenames : ndarray of str
    rows : ndarray of int64
        Of the label table.
    parts : ndarray of str
        Images of one part lie together in a shard that is made, so that the others need not be read.
    color, size
        As in :class:`~ovr_ray.recipe.Data`.
    """

    file: UPath
    root: str
    filenames: np.ndarray
    rows: np.ndarray
    parts: np.ndarray
    color: Literal["gray", "rgb"]
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return (1 if self.color == "gray" else 3), self.size, self.size

    def images(self, wanted: np.ndarray, verify: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Those rows of the shard that are wanted; makes the shard where it is missing or damaged.

        Parameters
        ----------
        wanted : ndarray of bool
            Of every row of the label table.
        verify : bool
            Hold the pixels against their checksums, which takes longer than to read them.

        Returns
        -------
        rows : ndarray of int64, (N)
        images : ndarray of uint8, (N, C, H, W)
            Zeros where an image cannot be decoded.
        """
        try:
            whole = self.file if isinstance(self.file, Path) else io.BytesIO(self.file.read_bytes())
            with pq.ParquetFile(whole, page_checksum_verification=verify) as parquet:
                table = parquet.read_row_groups(self._groups_with(wanted, parquet), columns=["place", "image"])
        except (OSError, pa.ArrowException):
            table = self.make()
        rows = self.rows[table["place"].to_numpy()]
        images = _joined([_pixels(chunk, self.shape) for chunk in table["image"].chunks], self.shape)
        chosen = wanted[rows]
        return (rows, images) if chosen.all() else (rows[chosen], images[chosen])

    def facts(self) -> pd.DataFrame:
        """Row, error, and per channel the sums of pixels and of their squares, in 0..1; reads no pixels."""
        columns = ["error", "sums", "squares"]
        try:
            with self.file.open("rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                table = parquet.read(columns=["place", *columns])
        except (OSError, pa.ArrowException):
            table = self.make()
        return table.select(columns).to_pandas().assign(row=self.rows[table["place"].to_numpy()])

    def make(self) -> pa.Table:
        """Decode the images and write them, part by part; raises OSError if the storage takes no more."""
        order = np.argsort(self.parts, kind="stable")
        names, parts = self.filenames[order], self.parts[order]
        images, faults = np.zeros((len(names), *self.shape), np.uint8), [""] * len(names)
        for_good = True
        for at, content in enumerate(_contents([f"{self.root}/{name}" for name in names])):
            try:
                images[at] = decode(content.result(), self.color, self.size)
            except BadImage as bad:
                faults[at] = str(bad)
                for_good &= not isinstance(bad, UnreadableImage)  # a network may be better next time
        table = _table(order, names, images, faults)
        if for_good:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, _parquet(table, _runs(parts)))
        return table

    def _groups_with(self, wanted: np.ndarray, parquet: pq.ParquetFile) -> list[int]:
        places = parquet.read(columns=["place"])["place"].to_numpy()
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        of_group = np.split(wanted[self.rows[places]], np.cumsum(sizes)[:-1])
        return [group for group, any_wanted in enumerate(map(np.any, of_group)) if any_wanted]


def shards(table: LabelTable, data: Data, storage: str) -> list[Shard]:
    """All images of a label table in shards, there or not. Which image falls into which follows from its name."""
    most = max(1, SHARD_BYTES // (data.channels * data.image_size**2))
    count = 1 << max(0, (len(table.files) - 1) // most).bit_length()  # a few images more change few shards
    names, parts = table.files.to_numpy(object), table.parts.to_numpy(object)
    places = pd.util.hash_array(names, categorize=False)
    found = stamps(data.images, names)
    order = np.argsort(places, kind="stable")  # mixed, and the same mixture always
    folder = UPath(storage) / "_images" / f"{data.color}-{data.image_size}"
    made = []
    for rows in _by_bucket(order, places % count):
        told = "\n".join([str(LAYOUT), data.images, *(f"{name}\t{found.get(name)}" for name in names[rows])])
        file = folder / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.parquet"
        made.append(Shard(file, data.images, names[rows], rows, parts[rows], data.color, data.image_size))
    return made


def missing(all_shards: list[Shard]) -> list[Shard]:
    """Those that are not on disk."""
    if not all_shards:
        return []
    folder = all_shards[0].file.parent
    try:
        there = {file.name for file in folder.iterdir()}
    except storage_errors():
        there = set()
    return [shard for shard in all_shards if shard.file.name not in there]


def _contents(files: list[str]) -> Iterator[Future[bytes]]:
    """In order; the next few are read meanwhile, and no more than those are held."""
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for file in files:
            waiting.append(pool.submit(read_file, file))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _by_bucket(order: np.ndarray, bucket: np.ndarray) -> Iterator[np.ndarray]:
    """Row numbers of each bucket, in this order."""
    grouped = order[np.argsort(bucket[order], kind="stable")]
    yield from np.split(grouped, np.flatnonzero(np.diff(bucket[grouped])) + 1)


def _table(places: np.ndarray, names: np.ndarray, images: np.ndarray, errors: list[str]) -> pa.Table:
    count, (channels, height, width) = len(names), images.shape[1:]
    flat = images.reshape(count, channels, -1)
    sums = flat.sum(2, dtype=np.int64) / 255
    squares = np.stack([np.square(image, dtype=np.int64).sum(1) for image in flat]) / 255**2
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(channels * height * width), count, [None, pa.py_buffer(images)]
    )
    told = {"place": places, "filename": pa.array(names, pa.string()), "error": errors}
    return pa.table(told | {"sums": list(sums), "squares": list(squares), "image": pixels})


def _parquet(table: pa.Table, groups: Iterable[tuple[int, int]]) -> bytes:
    """With a checksum a page; statistics would hold pixels again, outside of any checksum."""
    content = io.BytesIO()
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(content, table.schema, write_page_checksum=True, **plain) as writer:
        for start, count in groups:
            writer.write_table(table.slice(start, count), row_group_size=count)
    return content.getvalue()


def _pixels(chunk: pa.FixedSizeBinaryArray, shape: tuple[int, int, int]) -> np.ndarray:
    """A view of Arrow's memory, (N, C, H, W)."""
    size = int(np.prod(shape))
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * size, chunk.offset * size)
    return flat.reshape(len(chunk), *shape)


def _joined(chunks: list[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Copies only where there is more than one."""
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty((0, *shape), np.uint8), *chunks])


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and length of each run of equal values."""
    starts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1)]
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        yield int(start), int(end - start)
