"""The images that `predict` predicts per second, against a bare loop, by ONNX Runtime, and with a second worker."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image
from upath import UPath

from ovr_ray import cluster
from ovr_ray.images import read_image
from ovr_ray.joint import JointModel, load_torchscript, write_exported, write_torchscript
from ovr_ray.model import SubModel, build
from ovr_ray.recipe import parse
from ovr_ray.results import SavedModel, predict
from ovr_ray.results.worker import BATCH
from ovr_ray.training import keep_pages
from tests.benchmarks.measure import Row, in_turn, row
from tests.support import GRAY, joint_metadata

LONG = False
SIZE = 224
IMAGES = 512
"""A multiple of the images that a Ray task predicts, so that two workers share them equally."""
RUNS = 3
LABELS = ["a", "b"]


def rows() -> list[Row]:
    """Compare on PNGs of 300 x 300 gray pixels, with two EfficientNet-Lite0 at 224 pixels, one thread per worker."""
    with tempfile.TemporaryDirectory() as folder, _one_thread(), cluster.connected():
        files = write_images(Path(folder), IMAGES)
        model, by_onnx = _write_models(Path(folder))
        decoded = [read_image(file, GRAY) for file in files]
        joint, _ = load_torchscript(model.file.read_bytes())
        works: dict[str, Callable[[], object]] = {
            "one": partial(predict, model, files, workers=1),
            "onnx": partial(predict, by_onnx, files, workers=1),
            "two": partial(predict, by_onnx, files, workers=2),
            "loop": partial(_loop, joint, decoded),
        }
        taken = in_turn(works, runs=RUNS, warm=1)
        keep_pages()  # as workers do; it comes second because it cannot be undone
        kept = in_turn({"one": works["one"], "loop": works["loop"]}, runs=RUNS, warm=1)
        cores = int(ray.cluster_resources()["CPU"])
        more = {"images": IMAGES, "torch_threads": 1, "note": "Ray and its workers started before"}
        few = {} if cores > 2 else {"doubt": f"{cores} cores: two workers share them with decoding and with Ray itself"}
        return [
            row("predict, 1 worker", "decoded-loop", taken["one"], taken["loop"], 0.95, RUNS, **more),
            row("predict, 1 worker", "decoded-loop, pages kept", kept["one"], kept["loop"], 0.95, RUNS, **more),
            row("predict, ONNX Runtime", "predict, TorchScript", taken["onnx"], taken["one"], 1.9, RUNS, **more),
            row("predict, 2 workers", "predict, 1 worker", taken["two"], taken["onnx"], 1.8, RUNS, **more, **few),
        ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, as a worker with one CPU does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_images(folder: Path, count: int) -> list[str]:
    """Write smooth shapes under noise, which PNG compresses about as well as photographs, and return their paths."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).resize((300, 300), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (300, 300))
        files.append(str(folder / f"{number:04d}.png"))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


def _write_models(folder: Path) -> tuple[SavedModel, SavedModel]:
    """Return the same joint model as TorchScript alone, and with an ONNX file beside it."""
    torch.manual_seed(0)
    sub_models = [SubModel(build("efficientnet_lite0", SIZE), SIZE, SIZE, 1, [0.5], [0.2]).eval() for _ in LABELS]
    data = {"labels": "unused.csv", "images": "unused", "image_size": SIZE}
    recipe = parse({"name": "benchmark", "data": data, "tasks": {label: {"trials": 1} for label in LABELS}})
    metadata = joint_metadata(LABELS).model_copy(update={"recipe": recipe.dump()})
    joint = JointModel(LABELS, sub_models, [0.5, 0.5]).eval()
    image = torch.randint(0, 256, (1, 300, 300), dtype=torch.uint8)
    write_torchscript(joint, UPath(folder) / "alone.pt", metadata, [image])
    shutil.copy(folder / "alone.pt", folder / "joint.pt")
    model, by_onnx = (SavedModel(os.fspath(folder / name)) for name in ("alone.pt", "joint.pt"))
    metadata = metadata.model_copy(update={"torchscript": by_onnx.digest})
    write_exported(joint, UPath(folder) / "joint.onnx", "onnx", metadata, [image])
    return model, by_onnx


@torch.inference_mode()
def _loop(joint: torch.jit.ScriptModule, decoded: list[np.ndarray]) -> None:
    for start in range(0, len(decoded), BATCH):
        joint(torch.from_numpy(np.stack(decoded[start : start + BATCH])))
