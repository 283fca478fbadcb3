"""State dicts in files."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault


def read_state_dict(path: Path | UPath, where: str) -> dict[str, torch.Tensor]:
    """Read a file that ``torch.save(network.state_dict(), path)`` wrote; runs no code of it.

    Parameters
    ----------
    path : Path or UPath
    where : str
        The field of the recipe that names the file, for error messages.

    Raises
    ------
    BadInput
        If there is no such file, or it holds no state dict.
    """
    remedy = "save it with torch.save(network.state_dict(), path)"
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(Fault(where, f"there is no file {path}")) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        problem = f"{path} is not a file of tensors: {str(error).splitlines()[0]}"
        raise BadInput(Fault(where, problem, remedy)) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInput(Fault(where, f"{path} holds no state dict", remedy))
    return state
