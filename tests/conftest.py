"""Tiny real things that tests share: cells drawn by the generator, a recipe, a Ray of our own, one finished search."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks are tiny, and threads of several processes wait for each other

import numpy as np
import pytest
import torch
from filelock import FileLock
from upath import UPath

from data.synthetic import generate
from ovr_ray.recipe import Recipe, parse
from ovr_ray.run_folder import RunFolder

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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  what other people's code draws from


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all of xdist's processes; who makes something in it holds a lock."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def cells(shared: Path) -> Path:
    """A folder with ``data.csv`` (filename;crack;inactive) and 80 images of 40 pixels; no test changes it."""
    folder = shared / "cells"
    with FileLock(shared / "cells.lock"):
        if not (folder / "data.csv").exists():
            generate(folder, count=80, size=40, rates={"crack": 0.4, "inactive": 0.25})
    return folder


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


@pytest.fixture
def make_recipe(cells: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A tiny recipe on the cells, some sections changed: ``make_recipe(search={"max_epochs": 1})``."""
    return lambda **sections: parse(plain_recipe(cells, tmp_path, **sections))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on a server on loopback, which every process that is started now finds."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        name = f"bucket-{port}"  # servers of one process share what they hold
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"
    finally:
        server.stop()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of our own: two CPUs, and two GPUs that are declared only."""
    import ray

    # sockets below a path of pytest's would be longer than the 107 bytes that Linux allows
    with tempfile.TemporaryDirectory(prefix="ovr-") as folder:
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200_000_000,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()


def copy_run(run: RunFolder, storage: Path) -> RunFolder:
    """A run folder in another storage, with the decoded images."""
    there = RunFolder(UPath(storage / run.path.name))
    for name in (run.path.name, "_images"):
        shutil.copytree(str(run.path.parent / name), storage / name, dirs_exist_ok=name == "_images")
    recipe = there.file("recipe.yaml")
    recipe.write_text(recipe.read_text().replace(str(run.path.parent), str(storage)))
    return there


@pytest.fixture(scope="session")
def finished(cells: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> RunFolder:
    """The run folder of a finished search over two tasks, with ``joint.pt`` and ``metrics.json``; searched once."""
    import ovr_ray

    recipe = parse(plain_recipe(cells, shared / "finished"))
    run = RunFolder.of(recipe)
    with FileLock(shared / "finished.lock"):
        if not run.file("metrics.json").exists():
            ovr_ray.run(recipe)
    return copy_run(run, tmp_path_factory.mktemp("runs"))
