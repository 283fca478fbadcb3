"""The differences between every format and the sub-models, for every family of networks, and the gain of freezing.

`python -m tests.benchmarks.parity [BACKBONE…]` prints both; without a name, for all backbones. Files are written by the
functions that `combine` uses. Networks are random, and their logits spread as those of trained ones.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from upath import UPath

from ovr_ray.errors import RunFailed
from ovr_ray.joint import JointModel, load_torchscript, write_exported, write_torchscript
from ovr_ray.recipe import ExportFormat
from tests.support import joint_metadata, random_images, random_sub_model

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "efficientnet_b3",
    "vgg16",
    "vgg19",
    "inception_v3",
    "efficientnet_lite0",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
    "mobilenet_v3_small",
)
"""The eight of the solar-cell recipe, then one of each other family."""

SIZE = 96
"""Pixels a side: Inception-v3 needs at least 75, ViT a multiple of 32."""

SPREAD = 0.03
"""Least standard deviation of the probabilities; similar ones would prove nothing."""

TIMED, TIMED_SIZE, RUNS = ("resnet18", "efficientnet_b3"), 224, 60
"""Backbones that are timed, pixels a side, and runs."""

FORMATS: tuple[ExportFormat, ...] = ("onnx", "pt2")
METADATA = joint_metadata(["a"])


def joint_model(backbone: str, size: int) -> JointModel:
    """Return a joint model of one sub-model, always the same."""
    torch.manual_seed(0)
    return JointModel(["a"], [random_sub_model(backbone, size, stored_size=size)], [0.5]).eval()


def parity(backbone: str, folder: Path) -> str:
    """Return a row of the table: the largest difference of a probability, and the file's size, for each format."""
    model = joint_model(backbone, SIZE)
    proof = list(random_images())
    assert model(torch.stack(proof)).detach().std() > SPREAD, f"{backbone}: similar probabilities prove nothing"
    cells = []
    for form in (None, *FORMATS):
        file = UPath(folder / f"joint.{form or 'pt'}")
        try:
            if form is None:
                difference = write_torchscript(model, file, METADATA, proof)
            else:
                difference = write_exported(model, file, form, METADATA, proof)
            cells.append(f"{difference:.1e}, {file.stat().st_size / 1e6:.1f} MB")
            file.unlink()
        except RunFailed as refused:
            cells.append(str(refused).partition(": ")[2])
    return f"| {backbone} | {' | '.join(cells)} |"


@torch.inference_mode()
def freezing(backbone: str, folder: Path) -> str:
    """Return a row of the table: milliseconds per image of a scripted and of a frozen model, timed in turn."""
    model, image = joint_model(backbone, TIMED_SIZE), random_images(size=(TIMED_SIZE, TIMED_SIZE), count=1)
    torch.jit.save(torch.jit.script(model), folder / "scripted.pt")
    write_torchscript(model, UPath(folder / "frozen.pt"), METADATA, [image[0]])
    scripted = torch.jit.load(folder / "scripted.pt")
    frozen, _ = load_torchscript((folder / "frozen.pt").read_bytes())
    seconds: dict[str, list[float]] = {"scripted": [], "frozen": []}
    for run in range(RUNS + 5):
        for name, joint in (("scripted", scripted), ("frozen", frozen)):
            start = time.perf_counter()
            joint(image)
            if run >= 5:  # the first runs compile
                seconds[name].append(time.perf_counter() - start)
    before, after = (median(times) * 1000 for times in seconds.values())
    return f"| {backbone} | {before:.1f} ms | {after:.1f} ms | {before / after:.2f}x |"


def main() -> None:
    """Print the tables."""
    wanted = sys.argv[1:] or BACKBONES
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        print(f"| backbone | torchscript | {' | '.join(FORMATS)} |\n|---|---|---|---|")
        for backbone in wanted:
            print(parity(backbone, Path(folder)), flush=True)
        print("\n| backbone | scripted | frozen | faster |\n|---|---|---|---|")
        for backbone in [name for name in TIMED if name in wanted]:
            print(freezing(backbone, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
