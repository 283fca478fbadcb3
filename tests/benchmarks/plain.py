"""What a careful person does without this project: one task, one plain PyTorch loop."""

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

from ovr_ray.model import build

STAGES = {0: 1e-3, 5: 1e-4, 20: 1e-5}
"""Finished epochs -> learning rate."""


class Cells(Dataset[tuple[torch.Tensor, float]]):
    """PNGs, decoded whenever they are asked for.

    Parameters
    ----------
    table : DataFrame
        ``filename`` and the task's column.
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
    parts: dict[str, pd.DataFrame],
    task: str,
    folder: Path,
    backbone: str,
    weights: str | None,
    rates: dict[int, float] = STAGES,
    pixels: tuple[float, float] | None = None,
    **how: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Train with Adam, staged rates, a positive weight and flips.

    Parameters
    ----------
    parts : dict of str to DataFrame
        train, val and, optionally, test.
    rates : dict of int to float
        Finished epochs -> learning rate.
    pixels : tuple of float, optional
        Mean and standard deviation, of 0..1; measured on train if they are not known.
    how : int
        ``size, epochs, batch, workers``.

    Yields
    ------
    dict of str to ndarray
        After each epoch: the probabilities (float32) of every part but train.
    """
    cells = {part: Cells(table, task, folder, how["size"], part == "train") for part, table in parts.items()}
    if pixels is None:
        train = torch.stack([image[0] for image, _ in cells["train"]])
        pixels = float(train.mean()), float(train.std())
    for each in cells.values():
        each.mean, each.std = pixels
    loaders = {
        part: DataLoader(each, how["batch"], shuffle=part == "train", num_workers=how["workers"])
        for part, each in cells.items()
    }
    net = build(backbone, how["size"], weights)
    positive = float(parts["train"][task].mean())
    loss_of = nn.BCEWithLogitsLoss(pos_weight=torch.tensor((1 - positive) / positive))
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0)
    schedule = LambdaLR(optimizer, lambda done: next(rate for first, rate in reversed(rates.items()) if done >= first))
    for _ in range(how["epochs"]):
        net.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss_of(net(images).flatten(), labels.float()).backward()
            optimizer.step()
        schedule.step()
        yield {part: _probabilities(net, loader) for part, loader in loaders.items() if part != "train"}


@torch.no_grad()
def _probabilities(net: nn.Module, loader: DataLoader[tuple[torch.Tensor, float]]) -> np.ndarray:
    net.eval()
    return torch.cat([net(images).flatten().sigmoid() for images, _ in loader]).numpy()
