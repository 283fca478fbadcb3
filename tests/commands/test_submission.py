"""``ray job submit`` against a real head."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from upath import UPath

from ovr_ray.runs import RunFolder
from tests.support import PATIENCE, end, free_port, plain_recipe

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


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
            end(head)


def wait_for_agent(address: str) -> None:
    wait_for(lambda: submit(address, "true").returncode == 0)


def submit(
    address: str, *entrypoint: str, folder: Path | None = None, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    working_dir = ["--working-dir", str(folder)] if folder else []
    return ray("job", "submit", "--address", address, *working_dir, *options, "--", *entrypoint)


def ray(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    return subprocess.run(
        [RAY, *command], capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(PATIENCE * 2):
        if happened():
            return
        time.sleep(0.5)
    raise AssertionError("it did not happen")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job needs of the project, with a recipe in it."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("ovr_ray", "jobs"):
        shutil.copytree(PROJECT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.long
def test_a_stopped_job_goes_on_where_it_was_when_it_is_submitted_again(
    address: str, project: Path, cells: Path, tmp_path: Path
) -> None:
    recipe = plain_recipe(cells, tmp_path, search={"max_epochs": 30, "scheduler": "none"})
    recipe["tasks"] = {"crack": recipe["tasks"]["crack"] | {"trials": 2}}
    (project / "stopped.yaml").write_text(yaml.safe_dump(recipe))
    entrypoint = ("python", "jobs/tune.py", "stopped.yaml")
    begun = submit(address, *entrypoint, folder=project, options=("--no-wait", "--submission-id", "to-be-stopped"))
    assert begun.returncode == 0, begun.stdout
    run = RunFolder(UPath(tmp_path / "tiny"))
    wait_for(lambda: sum(len(trial.epochs()) >= 2 for trial in run.trials()) == 2)
    stopped = ray("job", "stop", "--address", address, "to-be-stopped")
    assert "was stopped" in stopped.stdout, stopped.stdout
    before = {trial.name: trial.epochs() for trial in run.trials()}
    again = submit(address, *entrypoint, folder=project)
    assert again.returncode == 0, again.stdout
    for trial in run.trials():
        epochs, known = trial.epochs(), len(before[trial.name])
        assert epochs.epoch.tolist() == list(range(1, 31))
        assert epochs[:known].time.tolist() == before[trial.name].time.tolist()


def test_submit_can_be_left_and_goes_all_the_way_and_fetches_the_model_home(
    address: str, cells: Path, tmp_path: Path
) -> None:
    recipe = plain_recipe(cells, tmp_path / "cluster", search={"max_epochs": 1})
    recipe["tasks"] = {name: task | {"trials": 1} for name, task in recipe["tasks"].items()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [
        sys.executable,
        "-m",
        "ovr_ray.commands.cli",
        "submit",
        str(tmp_path / "recipe.yaml"),
        "--address",
        address,
    ]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    home = ["--output", str(tmp_path / "home")]
    left = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert left.stdout is not None
    assert left.stdout.readline().startswith("tune: job ")
    time.sleep(2)  # until it follows
    left.send_signal(signal.SIGINT)
    told = left.communicate(timeout=PATIENCE)[1]
    assert left.returncode == 130, told
    assert "the job goes on, and the same command follows it" in told
    done = subprocess.run(
        [*command, *home], capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is under way" in done.stdout
    assert "AP: average precision" in done.stdout
    assert {file.name for file in (tmp_path / "home" / "tiny").iterdir()} >= {
        "joint.pt",
        "metrics.json",
        "winners.json",
    }
    wrong = [*command, "--set=name=wrong", f"--set=data.labels={tmp_path / 'no.csv'}"]
    refused = subprocess.run(wrong, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "no.csv: no such file" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.long
def test_what_a_cluster_lacks_is_installed_for_the_job(address: str) -> None:
    code = (
        "from importlib.metadata import distributions as all; print(*[d.locate_file('') for d in all(name='ovr-ray')])"
    )
    environment = ("--runtime-env-json", json.dumps({"pip": ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}[lite]"]}))
    job = submit(address, "python", "-c", code, folder=PROJECT, options=environment)
    assert job.returncode == 0, job.stdout
    assert re.search("runtime_resources/pip/.*site-packages", job.stdout), job.stdout


def test_images_runs_and_caches_are_not_uploaded(address: str, project: Path) -> None:
    shutil.copy(PROJECT / ".gitignore", project)
    for folder in ("data/images", "data/elpv", "runs", ".venv", ".git"):
        (project / folder).mkdir(parents=True)
        (project / folder / "large").write_bytes(bytes(1 << 20))
    job = submit(address, "du", "-sk", ".", folder=project)
    kilobytes = int(re.search(r"^(\d+)\s+\.$", job.stdout, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert kilobytes < 1024


def test_submit_tells_of_a_lacking_token_and_of_no_cluster(address: str, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain_recipe(cells, tmp_path)))
    for url in (address, f"http://127.0.0.1:{free_port()}"):
        command = [
            sys.executable,
            "-m",
            "ovr_ray.commands.cli",
            "submit",
            str(tmp_path / "recipe.yaml"),
            "--address",
            url,
        ]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
        told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
        assert told.returncode == 2, told.stderr
        assert f"--address {url}: takes no jobs from here" in told.stderr
        assert "Traceback" not in told.stderr


def test_a_job_refuses_relative_paths_with_the_reason(address: str, project: Path, cells: Path, tmp_path: Path) -> None:
    (project / "relative.yaml").write_text(yaml.safe_dump(plain_recipe(cells, Path("runs"))))
    job = submit(address, "python", "jobs/tune.py", "relative.yaml", folder=project)
    assert job.returncode != 0
    assert "storage: is a relative path, and a job runs in a copy of its folder" in job.stdout
    assert "failed" in job.stdout + job.stderr
