"""What a careful person does without this project: one task, one plain PyTorch loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from ovr_ray.model import Confusion, build

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
    parts: dict[str, pd.DataFrame], task: str, folder: Path, backbone: str, weights: str | None, **how: Any
) -> dict[str, Any]:
    """Train with Adam, staged rates, a positive weight and flips; keep what the epoch of the best validation F1 says.

    Parameters
    ----------
    parts : dict of str to DataFrame
        train, val and, optionally, test.
    how : int
        ``size, epochs, batch, workers, seed``.

    Returns
    -------
    dict
        ``epoch``, ``val_f1`` and ``test`` (probabilities, float32) of the best epoch; ``images`` trained on.
    """
    torch.manual_seed(how["seed"])
    loaders = {
        part: DataLoader(
            Cells(table, task, folder, how["size"], part == "train"),
            how["batch"],
            shuffle=part == "train",
            num_workers=how["workers"],
        )
        for part, table in parts.items()
    }
    pixels = torch.stack([image[0] for image, _ in loaders["train"].dataset])
    for loader in loaders.values():
        loader.dataset.mean, loader.dataset.std = float(pixels.mean()), float(pixels.std())
    net = build(backbone, how["size"], weights)
    positive = float(parts["train"][task].mean())
    loss_of = nn.BCEWithLogitsLoss(pos_weight=torch.tensor((1 - positive) / positive))
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0)
    schedule = LambdaLR(optimizer, lambda done: next(rate for first, rate in reversed(STAGES.items()) if done >= first))
    best: dict[str, Any] = {"val_f1": -1.0}
    for epoch in range(1, how["epochs"] + 1):
        net.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss_of(net(images).flatten(), labels.float()).backward()
            optimizer.step()
        schedule.step()
        answers = {part: _probabilities(net, loader) for part, loader in loaders.items() if part != "train"}
        f1 = Confusion.of(parts["val"][task].to_numpy(), answers["val"] >= 0.5).f1
        if f1 > best["val_f1"]:
            best = {"epoch": epoch, "val_f1": f1, "test": answers.get("test")}
    return best | {"images": how["epochs"] * len(parts["train"])}


@torch.no_grad()
def _probabilities(net: nn.Module, loader: DataLoader[tuple[torch.Tensor, float]]) -> np.ndarray:
    net.eval()
    return torch.cat([net(images).flatten().sigmoid() for images, _ in loader]).numpy()
