"""``ray job submit`` against a real head."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ovr_ray.run_folder import RunFolder
from tests.conftest import plain_recipe

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head of our own, ports and temp folder included; ended by its pid."""
    dashboard, agent, gcs, client = (free_port() for _ in range(4))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "token"}
    environment["PATH"] = f"{RAY.parent}:{environment['PATH']}"  # jobs say `python`
    with tempfile.TemporaryDirectory(prefix="ovr-", ignore_cleanup_errors=True) as folder:
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        where = ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"]
        size = ["--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
        command = [RAY, "start", "--head", "--block", *ports, *where, *size]
        with (Path(folder) / "head.log").open("w") as log:
            head = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            wait_for_agent(f"http://127.0.0.1:{dashboard}")
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            head.terminate()
            head.wait(60)


def wait_for_agent(address: str) -> None:
    for _ in range(30):
        if submit(address, "true").returncode == 0:
            return
        time.sleep(1)
    raise AssertionError("the head takes no jobs")


def submit(address: str, *entrypoint: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    working_dir = ["--working-dir", str(folder)] if folder else []
    command = [RAY, "job", "submit", "--address", address, *working_dir, "--", *entrypoint]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job needs of the project, with a recipe in it."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("ovr_ray", "jobs"):
        shutil.copytree(PROJECT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_tune_and_combine_run_as_jobs(address: str, project: Path, cells: Path, tmp_path: Path) -> None:
    recipe = plain_recipe(cells, tmp_path, search={"max_epochs": 1})
    recipe["tasks"] = {name: task | {"trials": 1} for name, task in recipe["tasks"].items()}
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tuned = submit(address, "python", "jobs/tune.py", "recipe.yaml", folder=project)
    assert tuned.returncode == 0, tuned.stdout
    run = RunFolder.open(tmp_path / "tiny")
    assert {trial.record()["status"] for trial in run.trials()} == {"finished"}
    combined = submit(address, "python", "jobs/combine.py", str(run.path), folder=project)
    assert combined.returncode == 0, combined.stdout
    assert run.file("joint.pt").exists()


def test_a_job_refuses_relative_paths_with_the_reason(address: str, project: Path, cells: Path, tmp_path: Path) -> None:
    (project / "relative.yaml").write_text(yaml.safe_dump(plain_recipe(cells, Path("runs"))))
    job = submit(address, "python", "jobs/tune.py", "relative.yaml", folder=project)
    assert job.returncode != 0
    assert "storage: is a relative path, and a job runs in a copy of its folder" in job.stdout
    assert "failed" in job.stdout + job.stderr
