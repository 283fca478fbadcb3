"""Files of the same content: which they are, and how they stay in one split."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import assert_never

import numpy as np
import pandas as pd

from ovr_ray.images.decoding import UnreadableImage, read_file
from ovr_ray.images.files import stamps
from ovr_ray.recipe import Data
from ovr_ray.storage import side_by_side


def units(files: pd.Series, groups: pd.Series | None, data: Data) -> pd.Series | None:
    """Return which rows fall into the same split, as :func:`~ovr_ray.images.splitting.split` takes it.

    Parameters
    ----------
    files : Series of str
        Path of each row's image below ``data.images``.
    groups : Series, optional
        Rows with the same value stay together. By default each row is a group of its own.
    data : Data

    Returns
    -------
    Series or None
        ``groups``; if duplicates stay together, groups that share a content are one.
    """
    match data.duplicates:
        case "together":
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components

            own = pd.Series(files.index, files.index) if groups is None else groups
            group, content, count = pd.factorize(own)[0], contents(files, data.images).to_numpy(), len(files)
            shared = coo_array((np.ones(count), (group, content + count)), shape=(2 * count, 2 * count))
            joined = connected_components(shared, directed=False)[1][group]
            return own.groupby(joined).transform("first")
        case "warn" | "error":
            return groups
        case _:
            assert_never(data.duplicates)


def contents(files: pd.Series, root: str) -> pd.Series:
    """Return a number for each file below a folder or URI, the same for files of the same content.

    Only files of equal size are read. An empty file, and one that cannot be read, is like no other.
    """
    sizes = pd.Series({name: stamp.split()[0] for name, stamp in stamps(root, files).items()}, dtype=object)
    alike = sizes.index[sizes.duplicated(keep=False) & (sizes != "0")]
    digests = dict(zip(alike, side_by_side(partial(_digest, root), alike), strict=True))
    return pd.Series(pd.factorize(files.map(lambda name: digests.get(name) or name))[0], files.index)


def _digest(root: str, name: str) -> bytes | None:
    try:
        return hashlib.sha256(read_file(f"{root}/{name}")).digest()
    except UnreadableImage:
        return None
