"""Helpers that tests share: tiny recipes and networks, copies of runs, the command line, and processes of their own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from upath import UPath

from ovr_ray.joint import JointMetadata
from ovr_ray.model import SubModel, build
from ovr_ray.recipe import Augment, Checkpoints, Config, Data
from ovr_ray.runs import RunFolder, TrialFolder
from ovr_ray.training import Assignment

BACKBONE = "shufflenet_v2_x0_5"
"""The smallest network of torchvision's."""

SIZE = 32
"""Pixels a side of the images that :func:`plain_recipe` stores."""

PATIENCE = 1500
"""Seconds until a process that a test started is taken to hang: well beyond what it needs on a slow machine."""

GRAY = Data(labels="data.csv", images=".")
RGB = GRAY.model_copy(update={"color": "rgb"})
"""What :func:`ovr_ray.images.decode` and ``read_image`` ask of a recipe, with its defaults."""

EVERY_OPTION: dict[str, Any] = {
    "warmup_epochs": 1.5,
    "body_lr_factor": 0.3,
    "unfreeze_epoch": 2,
    "ema_decay": 0.9,
}
"""Options of training that are off by default."""


IMAGES = 64
"""Images in :func:`batches`."""


def batches(epoch: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of images and labels that are easy to learn: dark images are negative, bright ones positive."""
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(4):
        labels = (torch.arange(16) % 4 == 0).float()
        images = torch.randint(0, 100, (16, 1, 32, 32), generator=generator) + 120 * labels.view(-1, 1, 1, 1).long()
        yield images.to(torch.uint8), labels


def assignment(
    folder: TrialFolder, epochs: int = 4, checkpoints: Checkpoints | None = None, **config: Any
) -> Assignment:
    """Return what a trial of crack trains on the images of :func:`batches`, with these fields of its config."""
    labels = (np.arange(IMAGES) % 4 == 0).astype(np.float32)
    return Assignment(
        folder=folder,
        task="crack",
        config=Config(**{"backbone": BACKBONE, "weights": None, "lr": 3e-3, "batch_size": 16} | config),
        seed=5,
        train_labels=labels,
        val_labels=labels,
        mean=[0.3],
        std=[0.2],
        stored_size=SIZE,
        channels=1,
        epochs=epochs,
        max_epochs=epochs,
        goal="f1",
        augment=Augment(),
        score_column="val_average_precision",
        checkpoints=checkpoints or Checkpoints(),
    )


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    """Have torch say that this process runs on a processor with these instructions; torch 2.8 is not asked this way."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, as :meth:`TrialFolder.write_epochs` takes them."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def scalars(path: str, metric: str) -> list[Any]:
    """Return the points that TensorBoard draws of a metric, from an event file or a trial's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(path)
    events.Reload()
    return events.Scalars(f"ray/tune/{metric}")


def free_port() -> int:
    """Return a port that nobody on this machine listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ancestors(pid: int) -> list[int]:
    """Return the processes above a process, its parent first."""
    line = []
    while pid > 1:
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        line.append(pid)
    return line


def end(process: subprocess.Popen[Any]) -> None:
    """SIGKILL a process that we started and all that it started; `ray start --block` would take half a minute."""
    below = []
    for other in Path("/proc").glob("[0-9]*"):
        try:
            if process.pid in ancestors(int(other.name)):
                below.append(int(other.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    for pid in (process.pid, *below):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def plain_recipe(cells: Path, storage: Path, **sections: Any) -> dict[str, Any]:
    """Return a recipe as plain YAML types, with these sections merged into it."""
    task = {
        "trials": 3,
        "default": {"backbone": BACKBONE, "weights": None, "lr": 1e-3, "batch_size": 16},
        "space": {"lr": {"loguniform": [1e-4, 1e-2]}, "unfreeze_epoch": {"choice": [0, 2]}},
    }
    recipe: dict[str, Any] = {
        "name": "tiny",
        "data": {"labels": str(cells / "data.csv"), "images": str(cells), "image_size": SIZE},
        "tasks": {"crack": task, "inactive": task},
        "search": {"max_epochs": 3, "grace_epochs": 1, "reduction": 2},
        "storage": str(storage),
    }
    for name, section in sections.items():
        recipe[name] = recipe.get(name, {}) | section if isinstance(section, dict) and name != "tasks" else section
    return recipe


def copy_run(run: RunFolder, storage: Path) -> RunFolder:
    """Copy a run folder and the decoded images to another storage, and return the copy."""
    there = RunFolder(UPath(storage / run.path.name))
    for name in (run.path.name, "_images"):
        shutil.copytree(str(run.path.parent / name), storage / name, dirs_exist_ok=name == "_images")
    recipe = there.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(run.path.parent), str(storage)))
    return there


@dataclass(frozen=True)
class Ended:
    """What a command printed, and the exit code that it ended with."""

    exit_code: int
    stdout: str
    stderr: str


def run_cli(*arguments: object) -> Ended:
    """Run the command line in this process, as ``ovr-ray ARGUMENTS`` would, and return how it ended."""
    from ovr_ray.commands.cli import main

    argv = ["ovr-ray", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ, COLUMNS="120"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


def run_cli_anew(*arguments: object, **variables: str) -> Ended:
    """Run the command line in a new process, with these environment variables, and return how it ended."""
    command = [sys.executable, "-m", "ovr_ray.commands.cli", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "120"} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def random_images(channels: int = 1, size: tuple[int, int] = (50, 70), count: int = 4) -> torch.Tensor:
    """Return images of noise, uint8 (count, channels, height, width)."""
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8)


def random_sub_model(backbone: str, image_size: int, stored_size: int = 64, channels: int = 1) -> SubModel:
    """Return a random sub-model whose head is so large that different images get different probabilities."""
    mean, std = [0.5] * channels, [0.2] * channels
    made = SubModel(build(backbone, image_size), stored_size, image_size, channels, mean, std).eval()
    head = made.head()
    assert isinstance(head, nn.Linear | nn.Conv2d)
    assert head.bias is not None
    with torch.no_grad():
        logits = made(random_images(channels))
        head.weight.copy_(head.weight / logits.std())
        head.bias.copy_((head.bias - logits.mean()) / logits.std())
    return made


def joint_metadata(labels: Sequence[str], thresholds: Sequence[float] | None = None) -> JointMetadata:
    """Return the metadata of a joint model that belongs to no run."""
    return JointMetadata(
        labels=list(labels),
        thresholds=list(thresholds or [0.5] * len(labels)),
        winners={label: f"{label}-0000, epoch 1" for label in labels},
        metrics={label: {"val_f1": 0.5} for label in labels},
        recipe={},
    )


class Counting(TorchDispatchMode):
    """Notes the operations that are dispatched to a device.

    Attributes
    ----------
    operations : list of str
        Their names, such as ``aten.add.Tensor``, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))
