"""From image files to batches, on Ray Data: decoded once, shared by every trial, flipped anew each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import ray.data
import torch
from ray.data.collate_fn import NumpyBatchCollateFn

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images.decoding import BadImage, read_image
from ovr_ray.images.labels import LabelTable, Part, empty_part_faults
from ovr_ray.recipe import Augment, Data

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8 (N, C, H, W), and labels, float32 (N)."""

IMAGES_PER_BLOCK = 128


@dataclass(frozen=True)
class ImageSet:
    """The decoded images of one part.

    Attributes
    ----------
    dataset : ray.data.Dataset
        Materialized; a row an image: ``row`` (int64, its place in the label table), ``image`` (uint8, C x H x W).
    bad : dict of int to str
        Why a row's image could not be decoded; its pixels are zeros.
    """

    dataset: ray.data.Dataset
    bad: dict[int, str]


def load(table: LabelTable, part: Part, data: Data) -> ImageSet:
    """Read, decode and resize a part's images, each once, into the cluster's object store."""
    rows = table.rows(part)
    blocks = [
        pd.DataFrame({"row": chunk, "filename": table.files.iloc[chunk].to_numpy()})
        for chunk in np.array_split(rows, max(1, -(-len(rows) // IMAGES_PER_BLOCK)))
    ]
    # an epoch's order follows from the order of the blocks
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    read = partial(_read_and_decode, root=data.images, color=data.color, size=data.image_size)
    # no CPU is claimed: blocks that are lost with a node are read again while trials hold every CPU there is
    readers = ray.data.TaskPoolStrategy(size=max(1, min(len(blocks), int(ray.cluster_resources().get("CPU", 1)))))
    dataset = ray.data.from_pandas(blocks).map_batches(read, batch_size=None, compute=readers, num_cpus=0).materialize()
    errors = dataset.select_columns(["row", "error"]).to_pandas()
    bad = errors[errors.error != ""]
    return ImageSet(dataset, dict(zip(bad.row.astype(int), bad.error, strict=True)))


def load_parts(table: LabelTable, data: Data, parts: Iterable[Part]) -> tuple[dict[Part, ImageSet], LabelTable]:
    """Load several parts; bad images are an error, or rows that count for no task, as the recipe says.

    Raises
    ------
    BadInput
        Names every bad image of all these parts, if ``on_bad_image`` is ``error``; or the tasks that have no image
        of one class left without them.
    """
    sets = {part: load(table, part, data) for part in parts}
    bad = {row: reason for images in sets.values() for row, reason in images.bad.items()}
    if bad and data.on_bad_image == "error":
        raise BadInput(bad_images_fault(table, bad))
    table = table.without(bad)
    if faults := list(empty_part_faults(table, data)):
        raise BadInput(faults)
    return sets, table


def bad_images_fault(table: LabelTable, bad: dict[int, str]) -> Fault:
    """Names all bad images, from row -> reason."""
    named = "\n".join(f"    {table.files.iloc[row]}: {reason}" for row, reason in sorted(bad.items()))
    remedy = "mend or remove them, or set data.on_bad_image: skip"
    return Fault("data.images", f"{len(bad)} of {len(table.files)} images cannot be decoded:\n{named}", remedy)


def pixel_statistics(images: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel, in 0..1, over the readable images."""
    sums = images.dataset.map_batches(_pixel_sums, batch_size=None).to_pandas()
    count = sums["count"].sum()
    mean = np.stack(sums["sum"]).sum(0) / count
    variance = np.stack(sums["squares"]).sum(0) / count - mean**2
    return mean.tolist(), np.sqrt(np.maximum(variance, 1e-8)).tolist()


@dataclass
class Feed:
    """One task's batches from a decoded part. Starts no Ray task once built in the process that iterates.

    Parameters
    ----------
    images : ray.data.Dataset
        As in :class:`ImageSet`.
    labels : ndarray of float32
        The task's label of every row of the label table; NaN rows are left out.
    batch_size : int
    """

    images: ray.data.Dataset
    labels: np.ndarray
    batch_size: int

    def __post_init__(self) -> None:
        self.images = self.images.materialize()  # the cache of blocks is lost on the way into a trial
        self._rows = self.images.count()

    def ordered(self) -> Iterator[Batch]:
        """Every image once, as it is, in the table's order."""
        return self._batches(_Collate(self.labels))

    def shuffled(self, epoch: int, seed: int, augment: Augment) -> Iterator[Batch]:
        """Every image once, in an order and with flips that follow from the seed and the epoch alone."""
        chances = np.random.default_rng([seed, epoch]).random((len(self.labels), 2))
        flips = chances < (augment.horizontal_flip, augment.vertical_flip)
        return self._batches(
            _Collate(self.labels, flips),
            local_shuffle_buffer_size=self._rows,
            local_shuffle_seed=int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]),
        )

    def _batches(self, collate: NumpyBatchCollateFn, **how: int) -> Iterator[Batch]:
        batches = self.images.iter_torch_batches(batch_size=self.batch_size, collate_fn=collate, **how)
        return iter(batches) if np.isfinite(self.labels).all() else _rebatched(batches, self.batch_size)


class _Collate(NumpyBatchCollateFn):
    """Rows of blocks -> a batch: labels looked up, flips done. Several threads call it."""

    def __init__(self, labels: np.ndarray, flips: np.ndarray | None = None) -> None:
        self._labels, self._flips = labels, flips

    def __call__(self, batch: dict[str, np.ndarray]) -> Batch:
        rows = batch["row"]
        counts = np.isfinite(self._labels[rows])
        rows, images = rows[counts], batch["image"][counts]  # indexing copies: blocks are shared and read-only
        if self._flips is not None:
            horizontal, vertical = self._flips[rows].T
            images[horizontal] = images[horizontal, :, :, ::-1]
            images[vertical] = images[vertical, :, ::-1]
        return torch.from_numpy(images), torch.from_numpy(self._labels[rows])


def _rebatched(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Full batches again, where rows that do not count left gaps."""
    images, labels = torch.empty(0, dtype=torch.uint8), torch.empty(0)
    for more_images, more_labels in batches:
        images = torch.cat([images, more_images]) if len(images) else more_images
        labels = torch.cat([labels, more_labels])
        while len(images) >= size:
            yield images[:size], labels[:size]
            images, labels = images[size:], labels[size:]
    if len(images):
        yield images, labels


def _read_and_decode(
    batch: dict[str, np.ndarray], root: str, color: Literal["gray", "rgb"], size: int
) -> dict[str, np.ndarray]:
    blank = np.zeros((1 if color == "gray" else 3, size, size), np.uint8)
    images, errors = [], []
    for filename in batch["filename"]:
        try:
            images.append(read_image(f"{root}/{filename}", color, size))
            errors.append("")
        except BadImage as error:
            images.append(blank)
            errors.append(str(error))
    return {"row": batch["row"], "image": np.stack(images), "error": np.array(errors, dtype=object)}


def _pixel_sums(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    images = batch["image"][batch["error"] == ""].astype(np.float32) / 255
    axes = (0, 2, 3)
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    sums, squares = images.sum(axes, dtype=np.float64), np.square(images).sum(axes, dtype=np.float64)
    return {"count": np.array([pixels]), "sum": sums[None], "squares": squares[None]}
