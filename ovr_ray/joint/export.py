"""A joint model as a file: TorchScript, ONNX or torch.export. All that depends on a format is here.

Writing includes proving: the file is loaded again and must answer as the Python sub-models do.
"""

from __future__ import annotations

import copy
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import Dim
from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.model import SubModel, prepared
from ovr_ray.run_folder import write_whole

METADATA = "ovr_ray.json"
"""Name of the extra file inside ``joint.pt`` and ``joint.pt2``, and of the property of ``joint.onnx``."""

TOLERANCE = 1e-4
"""Largest difference of a probability between the file and the Python sub-models."""

Format = Literal["onnx", "pt2"]
"""What a joint model can be written as, beside TorchScript."""

Joint = Callable[[torch.Tensor], torch.Tensor]
"""From images to probabilities."""


def refuse_lacking_packages(formats: Collection[Format]) -> None:
    """Raise :class:`BadInput` if ONNX is wanted and its packages are not there."""
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    if "onnx" in formats and lacking:
        raise BadInput(Fault("--format onnx", f"needs {', '.join(lacking)}", "pip install 'ovr-ray[onnx]'"))


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
    # convolutions are faster where an image's channels lie side by side, and answer so if their weights do
    ordered = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with _deprecation_known():
        scripted = torch.jit.freeze(torch.jit.script(ordered), preserved_attrs=["labels", "thresholds", "predict"])
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer, _extra_files={METADATA: json.dumps(metadata)})
    content = buffer.getvalue()
    loaded, _ = load_torchscript(content)
    batches = [batch for image in images for batch in (image[None], image[None].float() / 255)]
    return _write_proven(content, file, loaded, model, batches)


def write_exported(
    model: JointModel, file: UPath, form: Format, metadata: dict[str, Any], images: Sequence[torch.Tensor]
) -> float:
    """Export, prove and write as ONNX or ``torch.export``.

    Such a file takes what training stored: uint8, N x channels x S x S with N of 1 or more. It knows nothing of
    thresholds; they are in its metadata. Parameters, return value and errors are those of :func:`write_torchscript`.
    """
    size, channels = model.stored_size, model.channels
    stored = torch.cat([(prepared(image[None], channels, size) * 255).round().byte() for image in images])
    stored = stored if len(stored) > 1 else stored.repeat(2, 1, 1, 1)  # one image would be taken for the only size
    program = torch.export.export(model, (stored,), dynamic_shapes=({0: Dim.DYNAMIC},))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        if form == "onnx":
            joint = _export_onnx(program, stored, path, metadata)
        else:
            torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
            joint = torch.export.load(path).module()
        return _write_proven(path.read_bytes(), file, joint, model, [stored, stored[:1]])


def _export_onnx(
    program: torch.export.ExportedProgram, images: torch.Tensor, path: Path, metadata: dict[str, Any]
) -> Joint:
    import onnxruntime

    named: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
    exported = torch.onnx.export(program, (images,), dynamo=True, verbose=False, external_data=False, **named)
    assert exported is not None
    exported.model.metadata_props[METADATA] = json.dumps(metadata)
    exported.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def _write_proven(
    content: bytes, file: UPath, joint: Joint, model: JointModel, batches: Sequence[torch.Tensor]
) -> float:
    difference = parity(joint, list(model.sub_models), batches)  # type: ignore[arg-type]
    if not difference <= TOLERANCE:
        told = f"its probabilities differ by {difference:.2g} from its sub-models'"
        raise RunFailed(f"{file}: {told}; not written")
    write_whole(file, content)
    return difference


@torch.inference_mode()
def parity(joint: Joint, sub_models: Sequence[SubModel | Ensemble], batches: Sequence[torch.Tensor]) -> float:
    """Largest difference of a probability between a joint model and its sub-models."""
    differences = []
    for batch in batches:
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
