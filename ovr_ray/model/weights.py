"""Initial weights of a backbone: by name, from a state-dict file, or from the checkpoint of another sub-model."""

from __future__ import annotations

import re

from ovr_ray.errors import BadInput, Fault
from ovr_ray.model import backbones
from ovr_ray.model.backbones import StateDict
from ovr_ray.model.checkpoint import WEIGHTS, read_card
from ovr_ray.recipe import is_weights_file
from ovr_ray.storage import location


def initial_weights(backbone: str, weights: str | None) -> StateDict | None:
    """Return the weights that ``Config.weights`` names; None for random ones.

    Parameters
    ----------
    backbone : str
        Name of the network that they are for.
    weights : str or None
        ``DEFAULT`` or another name that the backbone's source knows, the path of a state-dict file of this network,
        or of a sub-model's checkpoint (its folder, or the weights in it).

    Raises
    ------
    BadInput
        If they cannot be had, or are of another backbone.
    """
    if weights is None:
        return None
    if not is_weights_file(weights):
        return backbones.named_weights(backbone, weights)
    where = f"backbone {backbone!r}, weights {weights!r}"
    path = location(weights)
    file = path / WEIGHTS if path.is_dir() else path
    card = read_card(file.parent) if file.name == WEIGHTS else None
    if card and (other := card.config["backbone"]) != backbone:
        problem = f"is a checkpoint of backbone {other!r}"
        raise BadInput(Fault(where, problem, f"give one of {backbone!r}, or this backbone: {other}"))
    state = backbones.read_state_dict(file, where)
    if not any(key.startswith("network.") for key in state):
        return state
    return {re.sub(r"^(network\.)+", "", key): value for key, value in state.items() if key not in ("mean", "std")}


def weights_fault(backbone: str, image_size: int, weights: str | None) -> Fault | None:
    """Return what prevents these weights, fetching them if necessary; None if nothing does."""
    try:
        state = initial_weights(backbone, weights)
        if state is not None:
            backbones.fitting(backbones.hollow(backbone, image_size), state, f"weights {weights!r}")
    except BadInput as error:
        return error.faults[0]
    return None
