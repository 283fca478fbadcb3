"""Fixtures that tests share: cells drawn by the generator, a recipe, a bucket, a Ray cluster, one finished search."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# networks are tiny, and the threads of several processes would wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from filelock import FileLock

from data.synthetic import generate
from ovr_ray.recipe import Recipe, parse
from ovr_ray.runs import RunFolder
from tests.support import copy_run, plain_recipe


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  other packages draw from it


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a folder that all of xdist's processes share; a process that makes something in it holds a lock."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def cells(shared: Path) -> Path:
    """Return a folder with ``data.csv`` (filename;crack;inactive) and 80 images of 40 pixels; no test changes it."""
    folder = shared / "cells"
    with FileLock(shared / "cells.lock"):
        if not (folder / "data.csv").exists():
            generate(folder, count=80, size=40, rates={"crack": 0.4, "inactive": 0.25})
    return folder


@pytest.fixture
def make_recipe(cells: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Return a function that makes a tiny recipe on the cells: ``make_recipe(search={"max_epochs": 1})``."""
    return lambda **sections: parse(plain_recipe(cells, tmp_path, **sections))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield an empty bucket on a server on loopback; processes that are started from now on find it."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    S3FileSystem.clear_instance_cache()  # instances of earlier tests know other servers
    try:
        name = f"bucket-{port}"  # servers of one process share what they hold
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"
    finally:
        server.stop()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a Ray of this test session's own: two CPUs, and two GPUs that are only declared."""
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


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few images predicted in this process, as where no Ray runs: jobs of Ray Data take seconds."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture(scope="session")
def finished(cells: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> RunFolder:
    """Return a copy of the run folder of a finished search over two tasks, with ``joint.pt`` and ``metrics.json``."""
    import ovr_ray

    recipe = parse(plain_recipe(cells, shared / "finished"))
    run = RunFolder.of(recipe)
    with FileLock(shared / "finished.lock"):
        if not (run.path / "metrics.json").exists():
            ovr_ray.run(recipe)
    return copy_run(run, tmp_path_factory.mktemp("runs"))
