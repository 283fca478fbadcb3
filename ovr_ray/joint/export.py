"""A joint model as a file. All that depends on TorchScript, which torch has deprecated, is here.

Writing includes proving: the file is loaded again and must answer as the Python sub-models do.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.model import SubModel
from ovr_ray.run_folder import write_whole

METADATA = "ovr_ray.json"
"""Name of the extra file inside ``joint.pt``."""

TOLERANCE = 1e-4
"""Largest difference of a probability between the file and the Python sub-models."""


def write_torchscript(
    model: JointModel, file: UPath, metadata: dict[str, Any], images: Sequence[torch.Tensor]
) -> float:
    """Script, freeze, prove and write.

    Parameters
    ----------
    model : JointModel
        In eval mode, on the CPU.
    file : UPath
    metadata : dict
        Goes into the file as :data:`METADATA`.
    images : sequence of uint8 tensors (1 or 3, H, W)
        Real ones, as files have them, to prove the file on.

    Returns
    -------
    float
        The largest difference found.

    Raises
    ------
    RunFailed
        If it is above :data:`TOLERANCE`; nothing is written.
    """
    with _deprecation_known():
        scripted = torch.jit.freeze(torch.jit.script(model), preserved_attrs=["labels", "thresholds", "predict"])
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer, _extra_files={METADATA: json.dumps(metadata)})
    content = buffer.getvalue()
    loaded, _ = load_torchscript(content)
    difference = parity(loaded, list(model.sub_models), images)  # type: ignore[arg-type]
    if not difference <= TOLERANCE:
        raise RunFailed(
            f"the scripted model's probabilities differ by {difference:.2g} from its sub-models'; not written"
        )
    write_whole(file, content)
    return difference


@torch.inference_mode()
def parity(joint: torch.nn.Module, sub_models: Sequence[SubModel | Ensemble], images: Sequence[torch.Tensor]) -> float:
    """Largest difference of a probability between a joint model and its sub-models, over uint8 and float images."""
    differences = []
    for image in images:
        for batch in (image[None], image[None].float() / 255):
            expected = torch.stack([sub_model(batch).sigmoid() for sub_model in sub_models], 1)
            differences.append((joint(batch) - expected).abs().max())
    return float(torch.stack(differences).max())


def load_torchscript(
    content: bytes, device: torch.device | str = "cpu"
) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """A joint model and its metadata, from a file's bytes.

    Load no file of a stranger: TorchScript runs no Python, but it can call operators that write files.

    Raises
    ------
    BadInput
        If it is no joint model.
    """
    extra = {METADATA: ""}
    try:
        with _deprecation_known():
            model = torch.jit.load(io.BytesIO(content), map_location=device, _extra_files=extra)
        return model, json.loads(extra[METADATA])
    except (RuntimeError, json.JSONDecodeError) as error:
        problem = f"is not a joint model: {str(error).splitlines()[0]}"
        raise BadInput(Fault("the model's file", problem, "ovr-ray combine writes one")) from None


@contextmanager
def _deprecation_known() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        yield
