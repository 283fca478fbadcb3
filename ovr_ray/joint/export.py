"""Write a joint model as TorchScript, ONNX or torch.export; `engine.py` reads them.

Writing includes a proof: the file is loaded again, and must give the answers of the Python sub-models.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, assert_never

import torch
from upath import UPath

from ovr_ray.errors import RunFailed
from ovr_ray.joint.engine import OnnxRuntime, deprecation_known, load_torchscript
from ovr_ray.joint.metadata import JointMetadata
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.model import SubModel, activate_out_of_place, prepared
from ovr_ray.recipe import ExportFormat
from ovr_ray.runs import METADATA
from ovr_ray.storage import write_whole

TOLERANCE: Final = 1e-4
"""Largest accepted difference of a probability between the file and the Python sub-models."""

Joint = Callable[[torch.Tensor], torch.Tensor]
"""A function from images to probabilities."""


def write_torchscript(model: JointModel, file: UPath, metadata: JointMetadata, images: Sequence[torch.Tensor]) -> float:
    """Script, freeze, prove and write a joint model.

    Parameters
    ----------
    model : JointModel
        In eval mode, on the CPU.
    file : UPath
    metadata : JointMetadata
        Written into the file as :data:`METADATA`.
    images : sequence of uint8 tensors (1 or 3, H, W)
        Real images, in the size of their files, that the file is proven on.

    Returns
    -------
    float
        The largest difference of a probability.

    Raises
    ------
    RunFailed
        If the difference is above :data:`TOLERANCE`; nothing is written.
    """
    # convolutions are faster with channels last, which the weights' memory format decides
    ordered = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with deprecation_known():
        scripted = torch.jit.freeze(torch.jit.script(ordered), preserved_attrs=["labels", "thresholds", "predict"])
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer, _extra_files={METADATA: metadata.to_json()})
    content = buffer.getvalue()
    loaded, _ = load_torchscript(content)
    alike = groupby(sorted(images, key=lambda image: image.shape), key=lambda image: image.shape)
    stacked = [torch.stack(list(same)) for _, same in alike]
    batches = [batch for stack in stacked for batch in (stack, stack[:1].float() / 255)]
    return _write_proven(content, file, loaded, model, batches)


def write_exported(
    model: JointModel, file: UPath, form: ExportFormat, metadata: JointMetadata, images: Sequence[torch.Tensor]
) -> float:
    """Export a joint model, prove it, and write it as ONNX or ``torch.export``.

    Such a file takes images as training stores them: uint8, N x channels x S x S, with N of 1 or more. Thresholds are
    only in its metadata. Parameters, return value and errors are those of :func:`write_torchscript`.
    """
    from torch.export import Dim

    size, channels = model.stored_size, model.channels
    stored = torch.cat([(prepared(image[None], channels, size) * 255).round().byte() for image in images])
    stored = stored if len(stored) > 1 else stored.repeat(2, 1, 1, 1)  # a batch of one would fix the size
    pure = copy.deepcopy(model)
    activate_out_of_place(pure)  # otherwise ONNX of EfficientNet-Lite0 takes 1.7 times as long
    program = torch.export.export(pure, (stored,), dynamic_shapes=({0: Dim.DYNAMIC},))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        match form:
            case "onnx":
                joint = _export_onnx(program, stored, path, metadata)
            case "pt2":
                torch.export.save(program, path, extra_files={METADATA: metadata.to_json()})
                joint = torch.export.load(path).module()
            case _:
                assert_never(form)
        return _write_proven(path.read_bytes(), file, joint, model, [stored, stored[:1]])


def _export_onnx(
    program: torch.export.ExportedProgram, images: torch.Tensor, path: Path, metadata: JointMetadata
) -> Joint:
    exported = torch.onnx.export(
        program,
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    assert exported is not None
    exported.model.metadata_props[METADATA] = metadata.to_json()
    exported.save(path)
    engine = OnnxRuntime(path.read_bytes(), torch.get_num_threads())
    return lambda batch: torch.from_numpy(engine(batch.numpy()))


def _write_proven(
    content: bytes, file: UPath, joint: Joint, model: JointModel, batches: Sequence[torch.Tensor]
) -> float:
    difference = parity(joint, list(model.sub_models), batches)  # type: ignore[arg-type]
    if not difference <= TOLERANCE:
        problem = f"its probabilities differ by {difference:.2g} from its sub-models'"
        raise RunFailed(f"{file}: {problem}; not written")
    write_whole(file, content)
    return difference


@torch.inference_mode()
def parity(joint: Joint, sub_models: Sequence[SubModel | Ensemble], batches: Sequence[torch.Tensor]) -> float:
    """Return the largest difference of a probability between a joint model and its sub-models."""
    differences = []
    for batch in batches:
        expected = torch.stack([sub_model(batch).sigmoid() for sub_model in sub_models], 1)
        differences.append((joint(batch) - expected).abs().max())
    return float(torch.stack(differences).max())
