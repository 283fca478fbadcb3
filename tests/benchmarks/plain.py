"""The baseline that a careful person writes without this project: a plain PyTorch loop for one task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from ovr_ray.model import build, initial_weights

STAGES = {0: 1e-3, 5: 1e-4, 20: 1e-5}
"""Finished epochs -> learning rate."""


class Cells(Dataset[tuple[torch.Tensor, float]]):
    """Images of a label table, each decoded whenever it is wanted.

    Parameters
    ----------
    table : DataFrame
        ``filename`` and the task's column.
    task : str
    folder : Path
        The folder of the files.
    size : int
        Pixels a side.
    flip : bool
        Whether images are flipped at random.

    Attributes
    ----------
    mean, std : float
        Of the training images, whose pixels are in 0..1.
    """

    def __init__(self, table: pd.DataFrame, task: str, folder: Path, size: int, flip: bool) -> None:
        self.files, self.labels = table["filename"].tolist(), table[task].astype("float32").tolist()
        self.folder, self.size, self.flip = folder, size, flip
        self.mean, self.std = 0.0, 1.0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, float]:
        image = Image.open(self.folder / self.files[place]).convert("L")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = (torch.from_numpy(np.array(image)).float() / 255 - self.mean) / self.std
        for side in (0, 1):
            if self.flip and torch.rand(()) < 0.5:
                pixels = pixels.flip(side)
        return pixels.expand(3, -1, -1), self.labels[place]


def plain_loop(
    splits: dict[str, pd.DataFrame],
    task: str,
    folder: Path,
    backbone: str,
    weights: str | None,
    rates: dict[int, float] = STAGES,
    pixels: tuple[float, float] | None = None,
    *,
    size: int,
    epochs: int,
    batch_size: int,
    workers: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Train with Adam, staged rates, a positive weight and flips.

    Parameters
    ----------
    splits : dict of str to DataFrame
        Split (train, val and, optionally, test) -> ``filename`` and the task's column.
    task : str
    folder : Path
        The folder of the images.
    backbone : str
    weights : str or None
        As in :class:`~ovr_ray.recipe.Config`.
    rates : dict of int to float
        Finished epochs -> learning rate.
    pixels : tuple of float, optional
        Mean and standard deviation of the pixels, in 0..1; by default they are measured on train.
    size : int
        Pixels a side.
    epochs, batch_size : int
    workers : int
        Processes that decode, for each split.

    Yields
    ------
    dict of str to ndarray
        After each epoch: the probabilities (float32) of every split but train.
    """
    cells = {split: Cells(table, task, folder, size, split == "train") for split, table in splits.items()}
    if pixels is None:
        train = torch.stack([cells["train"][at][0][0] for at in range(len(cells["train"]))])
        pixels = float(train.mean()), float(train.std())
    for each in cells.values():
        each.mean, each.std = pixels
    loaders = {
        split: DataLoader(each, batch_size, shuffle=split == "train", num_workers=workers)
        for split, each in cells.items()
    }
    net = build(backbone, size, initial_weights(backbone, weights)).network
    positive = float(splits["train"][task].mean())
    loss_of = nn.BCEWithLogitsLoss(pos_weight=torch.tensor((1 - positive) / positive))
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0)
    schedule = LambdaLR(optimizer, lambda done: next(rate for first, rate in reversed(rates.items()) if done >= first))
    for _ in range(epochs):
        net.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss_of(net(images).flatten(), labels.float()).backward()
            optimizer.step()
        schedule.step()
        yield {split: _probabilities(net, loader) for split, loader in loaders.items() if split != "train"}


@torch.no_grad()
def _probabilities(net: nn.Module, loader: DataLoader[tuple[torch.Tensor, float]]) -> np.ndarray:
    net.eval()
    return torch.cat([net(images).flatten().sigmoid() for images, _ in loader]).numpy()
