"""Helpers that tests share: tiny recipes, copies of runs, and processes that tests start and end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from upath import UPath

from ovr_ray.run import RunFolder

BACKBONE = "shufflenet_v2_x0_5"
"""The smallest network of torchvision's."""

SIZE = 32

PATIENCE = 600
"""Seconds until a process that a test started is taken to hang: well beyond what it needs on a slow machine."""

EVERY_OPTION: dict[str, Any] = {
    "warmup_epochs": 1.5,
    "body_lr_factor": 0.3,
    "unfreeze_epoch": 2,
    "ema_decay": 0.9,
}
"""Of training; all are off by default."""


def free_port() -> int:
    """One that nobody on this machine listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ancestors(pid: int) -> list[int]:
    """Of a process, its parent first."""
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
    """A recipe as plain YAML types; sections are merged into it."""
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
    """A run folder in another storage, with the decoded images."""
    there = RunFolder(UPath(storage / run.path.name))
    for name in (run.path.name, "_images"):
        shutil.copytree(str(run.path.parent / name), storage / name, dirs_exist_ok=name == "_images")
    recipe = (there.path / "recipe.yaml")
    recipe.write_text(recipe.read_text().replace(str(run.path.parent), str(storage)))
    return there
