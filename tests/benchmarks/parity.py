"""What every format answers for every family of networks, and what freezing gives.

`python -m tests.benchmarks.parity [BACKBONE…]`, all without a name. Files are written by the functions that `combine`
writes with. Networks are random, their logits spread as those of trained ones.
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
from ovr_ray.joint import Format, JointModel, load_torchscript, write_exported, write_torchscript
from tests.joint.test_formats import OTHERS, THE_EIGHT
from tests.joint.test_joint import images, sub_model

SIZE = 96
"""Pixels a side: Inception-v3 takes no fewer than 75, ViT a multiple of 32."""

SPREAD = 0.03
"""Least standard deviation of the probabilities of the images that a file is proven on."""

TIMED, TIMED_SIZE, RUNS = ("resnet18", "efficientnet_b3"), 224, 60
FORMATS: tuple[Format, ...] = ("onnx", "pt2")


def joint_model(backbone: str, size: int) -> JointModel:
    """With one sub-model, always the same."""
    torch.manual_seed(0)
    return JointModel(["a"], [sub_model(backbone, size, stored_size=size)], [0.5]).eval()


def parity(backbone: str, folder: Path) -> str:
    """A row of the table: the largest difference of a probability, and the file's size, of each format."""
    model = joint_model(backbone, SIZE)
    proof = images()
    assert model(proof).detach().std() > SPREAD, f"{backbone}: alike probabilities prove nothing"
    cells = []
    for form in ("torchscript", *FORMATS):
        file = UPath(folder / f"joint.{form}")
        try:
            if form == "torchscript":
                difference = write_torchscript(model, file, {}, list(proof))
            else:
                difference = write_exported(model, file, form, {}, proof)  # type: ignore[arg-type]
            cells.append(f"{difference:.1e}, {file.stat().st_size / 1e6:.1f} MB")
            file.unlink()
        except RunFailed as refused:
            cells.append(str(refused).partition(": ")[2])
    return f"| {backbone} | {' | '.join(cells)} |"


@torch.inference_mode()
def freezing(backbone: str, folder: Path) -> str:
    """A row of the table: milliseconds an image, scripted alone and frozen, the two timed in turn."""
    model, (image, *_) = joint_model(backbone, TIMED_SIZE), images(size=(TIMED_SIZE, TIMED_SIZE)).split(1)
    torch.jit.save(torch.jit.script(model), folder / "scripted.pt")
    write_torchscript(model, UPath(folder / "frozen.pt"), {}, [image[0]])
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
    wanted = sys.argv[1:] or [*THE_EIGHT, *OTHERS]
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
