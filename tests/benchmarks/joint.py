"""A joint model's answer, against its sub-models one by one in eager mode, and against ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import torch
from upath import UPath

from ovr_ray.joint import JointModel, load_torchscript, write_exported, write_torchscript
from ovr_ray.model import SubModel, build
from tests.benchmarks.measure import Row, in_turn, row

LONG = False
SIZE = 224
BACKBONES = ("efficientnet_lite0", "resnet18")
CALLS = {1: 10, 64: 1}
"""Batch size -> calls a run."""
GOALS = {"eager": {1: 1.2, 64: 1.0}, "onnxruntime": {1: 0.77, 64: 0.77}}
MORE = {"onnxruntime": {"note": "a session as it is by default, on all cores"}}


def rows() -> list[Row]:
    """Two sub-models of one backbone, random weights, images of the stored size."""
    return [each for backbone in BACKBONES for each in _of(backbone)]


def _of(backbone: str) -> list[Row]:
    torch.manual_seed(0)
    parts = [SubModel(build(backbone, SIZE), SIZE, SIZE, 1, [0.5], [0.2]).eval() for _ in range(2)]
    model = JointModel(["a", "b"], parts, [0.5, 0.5]).eval()
    images = torch.randint(0, 256, (64, 1, SIZE, SIZE), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_torchscript(model, UPath(folder) / "joint.pt", {}, list(images[:2]))
        write_exported(model, UPath(folder) / "joint.onnx", "onnx", {}, list(images[:2]))
        joint, _ = load_torchscript((Path(folder) / "joint.pt").read_bytes())
        session = onnxruntime.InferenceSession(Path(folder) / "joint.onnx")
    found = []
    for size, calls in CALLS.items():
        batch = images[:size]
        given = {"images": batch.numpy()}
        works = {
            "ours": lambda batch=batch: joint(batch),
            "eager": lambda batch=batch: torch.stack([part(batch).sigmoid() for part in parts], 1),
            "onnxruntime": lambda given=given: session.run(None, given),
        }
        with torch.inference_mode():
            taken = in_turn(works, calls)
        for baseline, goals in GOALS.items():
            name, more = f"joint {backbone} x 2, batch {size}", MORE.get(baseline, {})
            found.append(row(name, baseline, taken["ours"], taken[baseline], goals[size], **more))
    return found
