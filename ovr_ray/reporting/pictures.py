"""Pictures of images that a task's joint model decides wrongly, and of labels that look wrong."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ovr_ray.images import BadImage, read_image
from ovr_ray.joint import Winner
from ovr_ray.model import class_activation, load_sub_model
from ovr_ray.recipe import Data, Split

SHOWN: Final = 8
"""Number of pictures of each kind."""

SIDE: Final = 224
"""Length of a picture's longer side, in pixels, at most."""

OVERLAY: Final = (255, 72, 0)
"""Colour of the evidence for the label; more evidence is more opaque."""

Mistake = Literal["false positives", "false negatives"]


@dataclass(frozen=True)
class Answer:
    """The label of one image, and the joint model's answer.

    Attributes
    ----------
    filename : str
    split : Split
    truth : int
        The label, 0 or 1.
    probability : float
    """

    filename: str
    split: Split
    truth: int
    probability: float


@dataclass(frozen=True)
class Picture:
    """One image on the page.

    Attributes
    ----------
    answer : Answer
    image : str
        JPEG as a data URI.
    overlay : str
        The evidence for the label, as the data URI of a transparent PNG; empty if there is no overlay.
    """

    answer: Answer
    image: str
    overlay: str


def mistakes(answers: pd.DataFrame, threshold: float) -> dict[Mistake, pd.DataFrame]:
    """Return the rows that are decided wrongly, by kind, the most confident mistake first."""
    decided = answers.probability.astype(np.float32) >= np.float32(threshold)
    false_positives = answers[decided & (answers.truth == 0)]
    false_negatives = answers[~decided & (answers.truth == 1)]
    return {
        "false positives": false_positives.sort_values("probability", ascending=False),
        "false negatives": false_negatives.sort_values("probability"),
    }


def contradicted(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose labels look wrong, the most doubtful first.

    By confident learning (Northcutt, Jiang and Chuang, JAIR 2021), a label looks wrong if the probability of the other
    class is at least its mean over the images that have that class as their label.
    """
    means = answers.groupby("truth").probability.mean()
    if len(means) < 2:
        return answers.iloc[:0]
    looks_positive = (answers.truth == 0) & (answers.probability >= means[1])
    looks_negative = (answers.truth == 1) & (answers.probability <= means[0])
    doubt = (answers.probability - answers.truth).abs()
    return answers.assign(doubt=doubt)[looks_positive | looks_negative].sort_values("doubt", ascending=False)


def listed_answers(rows: pd.DataFrame) -> list[Answer]:
    """Return rows of :func:`~ovr_ray.reporting.decisions.answers_of` as a list."""
    columns = zip(rows.filename, rows.split, rows.truth, rows.probability, strict=True)
    return [Answer(filename, split, int(truth), float(p)) for filename, split, truth, p in columns]


def pictures(answers: list[Answer], data: Data, winner: Winner | None) -> list[Picture]:
    """Return pictures of the images that can be read.

    Parameters
    ----------
    answers : list of Answer
    data : Data
    winner : Winner, optional
        If given, its sub-model's evidence for the label is drawn over the pictures.
    """
    shown, images = [], []
    for answer in answers:
        try:
            images.append(read_image(f"{data.images}/{answer.filename}", data))
        except BadImage:
            continue  # it was deleted after the evaluation
        shown.append(answer)
    overlays = _overlays(images, winner) if winner and images else [""] * len(images)
    return [Picture(answer, _jpeg(i), overlay) for answer, i, overlay in zip(shown, images, overlays, strict=True)]


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


def _uri(picture: Image.Image, form: Literal["JPEG", "PNG"]) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
