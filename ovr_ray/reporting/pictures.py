"""Images that a task's model gets wrong, and labels that look wrong, as pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ovr_ray.images import BadImage, read_image
from ovr_ray.joint import Winner
from ovr_ray.model import class_activation, load_sub_model
from ovr_ray.recipe import Data

SHOWN = 8
"""Pictures of a kind."""

SIDE = 224
"""Pixels of a picture's longer side, at most."""

OVERLAY = (255, 72, 0)
"""Colour of what speaks for the label; the more, the more opaque."""


@dataclass(frozen=True)
class Picture:
    """One image as the page shows it; the two URIs are data."""

    filename: str
    part: str
    truth: int
    probability: float
    image: str
    overlay: str


def worst(answers: pd.DataFrame, threshold: float) -> dict[str, tuple[pd.DataFrame, int]]:
    """The most confident false positives and false negatives, and how many there are of each."""
    decided = answers.probability >= np.float32(threshold)
    false_positives = answers[decided & (answers.truth == 0)].sort_values("probability", ascending=False)
    false_negatives = answers[~decided & (answers.truth == 1)].sort_values("probability")
    kinds = {"false positives": false_positives, "false negatives": false_negatives}
    return {kind: (rows.head(SHOWN), len(rows)) for kind, rows in kinds.items()}


def contradicted(answers: pd.DataFrame) -> pd.DataFrame:
    """Labels that look wrong, the most doubtful first: confident learning (Northcutt, Jiang and Chuang, JAIR 2021).

    An image is one whose probability of the other class is at least the mean one among that class's own images.
    """
    means = answers.groupby("truth").probability.mean()
    if len(means) < 2:
        return answers.iloc[:0]
    looks_positive = (answers.truth == 0) & (answers.probability >= means[1])
    looks_negative = (answers.truth == 1) & (answers.probability <= means[0])
    doubt = (answers.probability - answers.truth).abs()
    return answers.assign(doubt=doubt)[looks_positive | looks_negative].sort_values("doubt", ascending=False)


def pictures(rows: pd.DataFrame, data: Data, winner: Winner | None) -> list[Picture]:
    """The rows' images, with an overlay where the winner's checkpoint is still there; unreadable ones are left out."""
    shown, images = [], []
    for row in rows.to_dict("records"):
        try:
            images.append(read_image(f"{data.images}/{row['filename']}", data.color))
        except BadImage:
            continue  # gone since the search; the table of labels still names it
        shown.append(row)
    overlays = _overlays(images, winner) if winner and images else [""] * len(images)
    return [
        Picture(row["filename"], row["part"], row["truth"], row["probability"], _jpeg(image), overlay)
        for row, image, overlay in zip(shown, images, overlays, strict=True)
    ]


def _overlays(images: list[np.ndarray], winner: Winner) -> list[str]:
    sub_model = load_sub_model(winner.checkpoint, winner.card)
    maps = [class_activation(sub_model, torch.from_numpy(image.copy())[None])[0].numpy() for image in images]
    return [_uri(_tinted(activation), "PNG") for activation in maps]


def _tinted(activation: np.ndarray) -> Image.Image:
    alpha = Image.fromarray((activation * 200).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    tinted = Image.new("RGBA", alpha.size, OVERLAY)
    tinted.putalpha(alpha)
    return tinted


def _jpeg(image: np.ndarray) -> str:
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    picture.thumbnail((SIDE, SIDE))
    return _uri(picture, "JPEG")


def _uri(picture: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
