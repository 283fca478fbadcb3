"""A sub-model on disk: weights, what they belong to, and what training needs to go on.

A checkpoint is a folder. Its ``sub_model.json`` is written last and tells the size of the weights, so a folder that
was being written when the power went is told from a whole one.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.model import backbones
from ovr_ray.model.sub_model import SubModel

_JSON, _WEIGHTS, _TRAINING = backbones.CARD, backbones.WEIGHTS, "training.pt"


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself (``sub_model.json``).

    Attributes
    ----------
    task : str
    config : dict
        Of :class:`~ovr_ray.recipe.Config`.
    epoch : int
    metrics : dict
        As reported for this epoch.
    threshold : float
        The decision threshold that the task's goal asks for on validation.
    stored_size, image_size, channels, mean, std
        As in :class:`~ovr_ray.model.SubModel`.
    weights_bytes : int
        Size of the file of weights.
    """

    task: str
    config: dict[str, Any]
    epoch: int
    metrics: dict[str, Any]
    threshold: float
    stored_size: int
    image_size: int
    channels: int
    mean: list[float]
    std: list[float]
    weights_bytes: int = field(default=0)

    def rank(self, metric: str) -> tuple[float, float, int]:
        """What checkpoints are compared by: a metric, of equals the average precision, of equals the earlier epoch."""
        return self.metrics[metric], self.metrics["val_average_precision"], -self.epoch

    def sub_model(self, weights: str | None = None) -> SubModel:
        """Build it, the body starting from these weights (random by default)."""
        network = backbones.build(self.config["backbone"], self.image_size, weights)
        return SubModel(network, self.stored_size, self.image_size, self.channels, self.mean, self.std)


def save(folder: UPath, card: Card, sub_model: SubModel, training: dict[str, Any]) -> None:
    """Write a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _TRAINING).write_bytes(_bytes(training))
    weights = _bytes({name: tensor.contiguous() for name, tensor in sub_model.state_dict().items()})
    (folder / _WEIGHTS).write_bytes(weights)
    text = json.dumps(asdict(card) | {"weights_bytes": len(weights)}, indent=1, allow_nan=False)
    (folder / _JSON).write_text(text)


def read_card(folder: UPath) -> Card | None:
    """What a checkpoint says of itself; None if it is not whole."""
    try:
        card = Card(**json.loads((folder / _JSON).read_text()))
        whole = (folder / _WEIGHTS).stat().st_size == card.weights_bytes
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, TypeError):
        return None
    return card if whole else None


def load_sub_model(folder: UPath, card: Card) -> SubModel:
    """The sub-model of a checkpoint, on the CPU, ready to predict."""
    sub_model = card.sub_model()
    sub_model.load_state_dict(_load(folder / _WEIGHTS))
    return sub_model.eval()


def load_training(folder: UPath, sub_model: SubModel) -> dict[str, Any]:
    """Put the weights into ``sub_model``; returns the state of its training."""
    sub_model.load_state_dict(_load(folder / _WEIGHTS))
    return _load(folder / _TRAINING)


def forget(folder: UPath, weights_too: bool) -> None:
    """Delete a checkpoint, or only what training would need to go on from it."""
    for name in (_JSON, _WEIGHTS, _TRAINING) if weights_too else (_TRAINING,):
        (folder / name).unlink(missing_ok=True)
    if weights_too and folder.exists():  # in an object store a folder goes with its last object
        folder.rmdir()


def _bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _load(file: UPath) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(file.read_bytes()), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        problem = f"is not a file of tensors: {str(error).splitlines()[0]}"
        raise BadInput(
            Fault(str(file), problem, "delete its checkpoint's folder: the next best is taken then")
        ) from None
