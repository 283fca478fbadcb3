"""Decoded images in storage: Parquet files, so that later runs need not decode the images again.

A shard's file name is a hash of everything that determines its pixels: folder, names, sizes and times of its image
files, and size, color and white of the stored images. So a corrected label or another split decodes nothing again, a
changed image only its own shard, and an existing shard is always the right one. Parquet's checksums reveal a damaged
shard, which is made again. ``<storage>/_images`` may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from ovr_ray.images.decoding import BadImage, Facts, UnreadableImage, examine, read_file
from ovr_ray.images.files import stamps
from ovr_ray.images.labels import LabelTable
from ovr_ray.recipe import Data
from ovr_ray.storage import storage_errors, write_whole

SHARD_BYTES = 32 << 20
"""Most bytes of pixels per shard, on average: enough to read storage at full speed, few enough to shuffle well."""

READ_AHEAD = 16
"""Image files that are read at the same time: a bucket answers after tens of milliseconds."""

LAYOUT = 3
"""Version of the shards; increase it if the decoder or the content of a shard changes."""

Images = dict[int, np.ndarray]
"""Images, uint8 (C, H, W), by row of the label table."""

FACTS: Final = tuple(field.name for field in fields(Facts))
"""Columns of a shard that hold the facts of its images."""


@dataclass(frozen=True)
class Shard:
    """Some decoded images of a label table, in a file that may not exist yet.

    Attributes
    ----------
    file : UPath
        The Parquet file.
    data : Data
        Folder of the image files, and color, white and size of the stored images.
    filenames : ndarray of str
        Paths below ``data.images``.
    rows : ndarray of int64
        The images' rows in the label table.
    splits : ndarray of str
        Each image's split. A new shard stores the images of one split together, so that one split can be read alone.
    """

    file: UPath
    data: Data
    filenames: np.ndarray
    rows: np.ndarray
    splits: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.data.channels, self.data.image_size, self.data.image_size

    def images(self, wanted: np.ndarray, verify: bool = True) -> Images:
        """Read the wanted images of the shard; make the shard first if it is missing or damaged.

        Parameters
        ----------
        wanted : ndarray of bool
            For every row of the label table.
        verify : bool
            Compare the pixels with their checksums, which takes longer than reading them.

        Returns
        -------
        Images
            Views of what was read. An image that cannot be decoded is all zeros.

        Raises
        ------
        OSError
            If the shard has to be made and cannot be written.
        """
        try:
            source = self.file if isinstance(self.file, Path) else io.BytesIO(self.file.read_bytes())
            with pq.ParquetFile(source, page_checksum_verification=verify) as parquet:
                table = parquet.read_row_groups(self._groups_with(wanted, parquet), columns=["place", "image"])
        except (OSError, pa.ArrowException):
            table = self.make()
        rows = self.rows[table["place"].to_numpy()].tolist()
        images = chain.from_iterable(_pixels(chunk, self.shape) for chunk in table["image"].chunks)
        return {row: image for row, image in zip(rows, images, strict=True) if wanted[row]}

    def facts(self) -> pd.DataFrame:
        """Return ``row``, ``sums``, ``squares`` and the :class:`Facts` of every image, without reading pixels.

        ``sums`` and ``squares`` are sums over the pixels (0..1) and their squares, per channel.
        """
        columns = [*FACTS, "sums", "squares"]
        try:
            with self.file.open("rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                table = parquet.read(columns=["place", *columns])
        except (OSError, pa.ArrowException):
            table = self.make()
        return table.select(columns).to_pandas().assign(row=self.rows[table["place"].to_numpy()])

    def make(self) -> pa.Table:
        """Decode the images and write them, one split after the other; raise OSError if they cannot be written.

        If an image file cannot be read, no shard is written, so that the next run tries again.
        """
        order = np.argsort(self.splits, kind="stable")
        names, splits = self.filenames[order], self.splits[order]
        images, facts = np.zeros((len(names), *self.shape), np.uint8), [Facts()] * len(names)
        all_read = True
        for at, content in enumerate(_contents([f"{self.data.images}/{name}" for name in names])):
            try:
                images[at], facts[at] = examine(content.result(), self.data, self.data.image_size)
            except BadImage as bad:
                facts[at] = Facts(error=str(bad))
                all_read &= not isinstance(bad, UnreadableImage)
        table = _table(order, names, images, facts)
        if all_read:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, _parquet(table, _runs(splits)))
        return table

    def _groups_with(self, wanted: np.ndarray, parquet: pq.ParquetFile) -> list[int]:
        places = parquet.read(columns=["place"])["place"].to_numpy()
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        of_group = np.split(wanted[self.rows[places]], np.cumsum(sizes)[:-1])
        return [group for group, any_wanted in enumerate(map(np.any, of_group)) if any_wanted]


def shards(table: LabelTable, data: Data, storage: str) -> list[Shard]:
    """Return the shards of all images of a label table, existing or not; an image's name determines its shard.

    Parameters
    ----------
    table : LabelTable
    data : Data
    storage : str
        The shards are in its folder ``_images``.
    """
    most = max(1, SHARD_BYTES // (data.channels * data.image_size**2))
    # a power of 2, so that a few more images change few shards
    count = 1 << max(0, (len(table.files) - 1) // most).bit_length()
    names, splits = table.files.to_numpy(object), table.splits.to_numpy(object)
    hashes = pd.util.hash_array(names, categorize=False)
    stamp_of = stamps(data.images, names)
    order = np.argsort(hashes, kind="stable")  # mixes the images, always in the same way
    folder = UPath(storage) / "_images" / f"{data.color}-{data.image_size}"
    made = []
    for rows in _by_bucket(order, hashes % count):
        stamped = (f"{name}\t{stamp_of.get(name)}" for name in names[rows])
        key = "\n".join([str(LAYOUT), data.images, str(data.white), *stamped])
        file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.parquet"
        made.append(Shard(file, data, names[rows], rows, splits[rows]))
    return made


def missing(all_shards: list[Shard]) -> list[Shard]:
    """Return the shards whose files do not exist; a folder that cannot be listed counts as empty."""
    if not all_shards:
        return []
    folder = all_shards[0].file.parent
    try:
        existing = {file.name for file in folder.iterdir()}
    except storage_errors():
        existing = set()
    return [shard for shard in all_shards if shard.file.name not in existing]


def _contents(files: list[str]) -> Iterator[Future[bytes]]:
    """Yield the files' contents in order; at most the next :data:`READ_AHEAD` files are read ahead and held."""
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for file in files:
            waiting.append(pool.submit(read_file, file))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _by_bucket(order: np.ndarray, bucket: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the row numbers of each bucket, in the given order."""
    grouped = order[np.argsort(bucket[order], kind="stable")]
    yield from np.split(grouped, np.flatnonzero(np.diff(bucket[grouped])) + 1)


def _table(places: np.ndarray, names: np.ndarray, images: np.ndarray, facts: list[Facts]) -> pa.Table:
    count, (channels, height, width) = len(names), images.shape[1:]
    flat = images.reshape(count, channels, -1)
    sums = flat.sum(2, dtype=np.int64) / 255
    squares = np.stack([np.square(image, dtype=np.int64).sum(1) for image in flat]) / 255**2
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(channels * height * width), count, [None, pa.py_buffer(images)]
    )
    columns = {"place": places, "filename": pa.array(names, pa.string()), "sums": list(sums), "squares": list(squares)}
    known = {name: [getattr(of_file, name) for of_file in facts] for name in FACTS}
    return pa.table(columns | known | {"image": pixels})


def _parquet(table: pa.Table, groups: Iterable[tuple[int, int]]) -> bytes:
    """Encode a table with a checksum per page, without statistics: they would repeat pixels outside any checksum."""
    content = io.BytesIO()
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(content, table.schema, write_page_checksum=True, **plain) as writer:
        for start, count in groups:
            writer.write_table(table.slice(start, count), row_group_size=count)
    return content.getvalue()


def _pixels(chunk: pa.FixedSizeBinaryArray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the images, (N, C, H, W), as a view of Arrow's memory."""
    size = int(np.prod(shape))
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * size, chunk.offset * size)
    return flat.reshape(len(chunk), *shape)


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield start and length of each run of equal values."""
    starts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1)]
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        yield int(start), int(end - start)
