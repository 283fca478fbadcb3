"""The time of a joint model's answer, against its sub-models one by one in eager mode, and against ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from upath import UPath

from ovr_ray.joint import JointModel, load_torchscript, write_exported, write_torchscript
from ovr_ray.model import SubModel, build
from tests.benchmarks.measure import Row, in_turn, row
from tests.support import joint_metadata

LONG = False
SIZE = 224
BACKBONES = ("efficientnet_lite0", "resnet18")
CALLS = {1: 10, 64: 1}
"""Batch size -> calls per run."""
GOALS = {"eager": {1: 1.2, 64: 1.0}, "onnxruntime": {1: 0.77, 64: 0.77}}
MORE: dict[str, dict[str, Any]] = {"onnxruntime": {"note": "a session as it is by default, on all cores"}}


def rows() -> list[Row]:
    """Compare joint models of two sub-models with one backbone: random weights, images of the stored size."""
    return [each for backbone in BACKBONES for each in _of(backbone)]


def _of(backbone: str) -> list[Row]:
    torch.manual_seed(0)
    sub_models = [SubModel(build(backbone, SIZE), SIZE, SIZE, 1, [0.5], [0.2]).eval() for _ in range(2)]
    model = JointModel(["a", "b"], sub_models, [0.5, 0.5]).eval()
    metadata = joint_metadata(["a", "b"])
    images = torch.randint(0, 256, (64, 1, SIZE, SIZE), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_torchscript(model, UPath(folder) / "joint.pt", metadata, list(images[:2]))
        write_exported(model, UPath(folder) / "joint.onnx", "onnx", metadata, list(images[:2]))
        joint, _ = load_torchscript((Path(folder) / "joint.pt").read_bytes())
        session = onnxruntime.InferenceSession(Path(folder) / "joint.onnx")
    found = []
    for size, calls in CALLS.items():
        batch = images[:size]
        works: dict[str, Callable[[], object]] = {
            "ours": partial(joint, batch),
            "eager": partial(_eager, sub_models, batch),
            "onnxruntime": partial(session.run, None, {"images": batch.numpy()}),
        }
        with torch.inference_mode():
            taken = in_turn(works, calls)
        for baseline, goals in GOALS.items():
            name, more = f"joint {backbone} x 2, batch {size}", MORE.get(baseline, {})
            found.append(row(name, baseline, taken["ours"], taken[baseline], goals[size], **more))
    return found


def _eager(sub_models: list[SubModel], images: torch.Tensor) -> torch.Tensor:
    return torch.stack([sub_model(images).sigmoid() for sub_model in sub_models], 1)
