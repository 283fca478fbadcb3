"""A sub-model on disk: its weights, a card that describes them, and the state that training resumes from.

A checkpoint is a folder. Its card, ``sub_model.json``, is written last and holds the size of the weights, so that an
incomplete checkpoint can be recognised.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.model import backbones
from ovr_ray.model.backbones import StateDict
from ovr_ray.model.sub_model import SubModel
from ovr_ray.storage import read_whole

CARD: Final = "sub_model.json"
WEIGHTS: Final = "weights.pt"
TRAINING: Final = "training.pt"
"""Files of a checkpoint; only a trial's latest checkpoint has the last one."""


@dataclass(frozen=True)
class Card:
    """Description of a checkpoint (``sub_model.json``).

    Attributes
    ----------
    task : str
    config : dict
        Fields of :class:`~ovr_ray.recipe.Config`.
    epoch : int
        Counted from 1.
    metrics : dict
        The epoch's row of ``epochs.csv``.
    threshold : float
        Decision threshold that the task's goal asks for, chosen on validation.
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

    def rank(self, score_column: str) -> tuple[float, float, int]:
        """Return what checkpoints are compared by: a metric, then the average precision, then the earlier epoch."""
        return self.metrics[score_column], self.metrics["val_average_precision"], -self.epoch

    def sub_model(self, weights: StateDict | None = None) -> SubModel:
        """Build the sub-model; the backbone's body has these weights, or random ones."""
        backbone = backbones.build(self.config["backbone"], self.image_size, weights)
        return SubModel(backbone, self.stored_size, self.image_size, self.channels, self.mean, self.std)


def save(folder: UPath, card: Card, sub_model: SubModel, training: dict[str, Any]) -> None:
    """Write a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINING).write_bytes(_bytes(training))
    weights = _bytes({name: tensor.contiguous() for name, tensor in sub_model.state_dict().items()})
    (folder / WEIGHTS).write_bytes(weights)
    text = json.dumps(asdict(card) | {"weights_bytes": len(weights)}, indent=1, allow_nan=False)
    (folder / CARD).write_text(text)


def read_card(folder: UPath, files: Mapping[str, int] | None = None) -> Card | None:
    """Read a checkpoint's card; None if the checkpoint is incomplete or absent.

    Parameters
    ----------
    folder : UPath
    files : mapping of str to int, optional
        Sizes in bytes of the folder's files, from a listing; saves a request per checkpoint in a bucket.
    """
    if files is not None and not {CARD, WEIGHTS} <= files.keys():
        return None
    try:
        card = Card(**json.loads(read_whole(folder / CARD)))
        size = (folder / WEIGHTS).stat().st_size if files is None else files[WEIGHTS]
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):  # ValueError: no JSON, or no text
        return None
    return card if size == card.weights_bytes else None


def load_sub_model(folder: UPath, card: Card) -> SubModel:
    """Return the sub-model of a checkpoint, on the CPU, in eval mode."""
    sub_model = card.sub_model()
    sub_model.load_state_dict(_load(folder / WEIGHTS))
    return sub_model.eval()


def load_training(folder: UPath, sub_model: SubModel) -> dict[str, Any]:
    """Load the weights into ``sub_model``; return the state of its training."""
    sub_model.load_state_dict(_load(folder / WEIGHTS))
    return _load(folder / TRAINING)


def forget(folder: UPath, weights_too: bool) -> None:
    """Delete a checkpoint, or only the state that training would resume from."""
    for name in (CARD, WEIGHTS, TRAINING) if weights_too else (TRAINING,):
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
