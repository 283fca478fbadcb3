"""``ovr-ray submit`` and ``ray job submit``. The slow tests start a head of their own."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.job_submission import JobStatus
from rich.console import Console
from upath import UPath

import ovr_ray
from ovr_ray.commands import submission
from ovr_ray.errors import BadInput, Interrupted, OvrRayError, RunFailed
from ovr_ray.recipe import Recipe, load
from ovr_ray.runs import RunFolder
from tests.support import PATIENCE, end, free_port, plain_recipe, run_cli, run_cli_anew

PROJECT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def test_an_address_where_nothing_listens_is_refused(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain_recipe(cells, tmp_path)))
    address = f"http://127.0.0.1:{free_port()}"
    refused = run_cli("submit", tmp_path / "recipe.yaml", "--address", address)
    assert refused.exit_code == 2
    assert f"--address {address}: takes no jobs from here: " in refused.stderr
    assert "ray dashboard CLUSTER.yaml makes a tunnel" in refused.stderr
    with pytest.raises(BadInput, match="takes no jobs from here"):
        ovr_ray.submit(tmp_path / "recipe.yaml", address)


def test_a_file_of_somebody_else_where_the_model_would_be_fetched_to_is_told_first(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain_recipe(cells, tmp_path)))
    (tmp_path / "home/tiny").mkdir(parents=True)
    (tmp_path / "home/tiny/joint.pt").write_text("precious")
    with pytest.raises(BadInput, match=r"home/tiny/joint\.pt: is there already"):
        ovr_ray.submit(tmp_path / "recipe.yaml", "http://127.0.0.1:9", home=tmp_path / "home")


def test_the_jobs_are_sent_the_package_and_the_recipe_with_absolute_paths(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe().model_copy(update={"storage": "relative"})
    submission._pack(recipe, tmp_path)
    assert load(tmp_path / "recipe.yaml") == recipe.resolved() != recipe
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ovr_ray", "recipe.yaml"]
    source = Path(ovr_ray.__file__).parent

    def files(folder: Path) -> set[str]:
        every = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(folder).as_posix() for path in every}

    assert files(tmp_path / "ovr_ray") == files(source)
    assert not list(tmp_path.rglob("__pycache__"))


def test_nodes_install_what_the_package_needs_with_two_extras_but_not_the_package() -> None:
    names = {Requirement(line).name for line in submission._requirements()}
    assert {"torch", "ray", "pydantic", "timm", "boto3", "s3fs"} <= names
    assert not {"ovr-ray", "pytest", "mypy", "mlflow-skinny"} & names


@dataclass
class Job:
    """The end of a job, as Ray's client describes it."""

    status: JobStatus
    message: str = ""
    driver_exit_code: int = 0


class Client:
    """Ray's client of a cluster on which every job ends at once, in the same way and with the same log."""

    def __init__(self, job: Job, log: str = "") -> None:
        self.job, self.log = job, log
        self.submitted: list[dict[str, Any]] = []

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **job: Any) -> str:
        self.submitted.append(job)
        return f"job-{len(self.submitted)}"

    def get_job_info(self, name: str) -> Job:
        return self.job

    def get_job_logs(self, name: str) -> str:
        return self.log


def jobs_on(client: Client, run: RunFolder, install: bool = False) -> submission._Jobs:
    """Return the jobs of a run on this cluster."""
    return submission._Jobs(client, run, Console(file=io.StringIO()), install)


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        (Job(JobStatus.STOPPED), Interrupted, "job job-1 was stopped; the same command resumes it"),
        (Job(JobStatus.FAILED, "exit code 2", 2), BadInput, "job job-1: found its input wrong:\nline 20\n"),
        (Job(JobStatus.FAILED, "no memory", 1), RunFailed, "job job-1 failed: no memory\nline 20\n"),
    ],
)
def test_a_job_that_did_not_succeed_is_an_error_with_the_end_of_its_log(
    job: Job, error: type[OvrRayError], message: str, tmp_path: Path
) -> None:
    client = Client(job, "\n".join(f"line {number}" for number in range(40)))
    with pytest.raises(error) as caught:
        jobs_on(client, RunFolder(UPath(tmp_path))).do("tune", "recipe.yaml", folder="/packed")
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("resumes it" if job.status == JobStatus.STOPPED else "line 39")


@pytest.mark.parametrize("install", [False, True])
def test_a_verb_is_submitted_with_its_arguments_and_with_requirements_only_if_asked_for(
    install: bool, tmp_path: Path
) -> None:
    client = Client(Job(JobStatus.SUCCEEDED))
    jobs_on(client, RunFolder(UPath(tmp_path)), install).do("combine", str(tmp_path), "--task", "a b", folder="/packed")
    (job,) = client.submitted
    assert job["entrypoint"] == f"python -m ovr_ray.commands.cli combine {tmp_path} --task 'a b'"
    assert job["runtime_env"]["working_dir"] == "/packed"
    assert ("pip" in job["runtime_env"]) == install
    assert job["metadata"] == {"ovr_ray_run": str(tmp_path), "ovr_ray_verb": "combine"}


@pytest.fixture
def small_run(make_recipe: Callable[..., Recipe]) -> RunFolder:
    """Return a run folder with four result files of a few bytes, and one other file."""
    run = RunFolder.of(make_recipe())
    run.path.mkdir(parents=True)
    for name in ("joint.pt", "metrics.json", "winners.json", "report.html", "recipe.yaml"):
        (run.path / name).write_bytes(name.encode() + bytes(range(256)))
    return run


def test_the_results_arrive_as_they_were(
    small_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission._send(small_run)
    log = f"a warning\n{capsys.readouterr().out}another warning\n"
    home = tmp_path / "home" / "tiny"
    assert jobs_on(Client(Job(JobStatus.SUCCEEDED), log), small_run).fetch(home, "/packed") == home
    assert {file.name: file.read_bytes() for file in home.iterdir()} == {
        file.name: file.read_bytes() for file in small_run.results()
    }
    assert len(list(home.iterdir())) == 4


def test_results_that_are_too_large_for_a_log_are_not_sent(
    small_run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submission, "LARGEST", 1000)
    with pytest.raises(RunFailed, match=r"too much for a job's log; ray rsync-down CLUSTER\.yaml .*joint\.pt"):
        submission._send(small_run)
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start a head with ports and a temporary folder of its own, and yield its address; end it by its pid."""
    dashboard, agent, gcs, client = (free_port() for _ in range(4))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | TOKEN
    environment["PATH"] = f"{Path(RAY).parent}:{environment['PATH']}"  # jobs say `python`
    with tempfile.TemporaryDirectory(prefix="ovr-", ignore_cleanup_errors=True) as folder:
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        where = ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"]
        size = ["--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
        command = [RAY, "start", "--head", "--block", *ports, *where, *size]
        with (Path(folder) / "head.log").open("w") as log:
            head = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            wait_for(lambda: head.poll() is not None or submit(f"http://127.0.0.1:{dashboard}", "true").returncode == 0)
            assert head.poll() is None, (Path(folder) / "head.log").read_text()
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            end(head)


def submit(
    address: str, *entrypoint: str, folder: Path | None = None, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ``ray job submit`` and wait for the job's end."""
    working_dir = ["--working-dir", str(folder)] if folder else []
    return ray("job", "submit", "--address", address, *working_dir, *options, "--", *entrypoint)


def ray(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Ray's command line with the token of this user."""
    environment = os.environ | TOKEN
    return subprocess.run(
        [RAY, *command], capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    for _ in range(PATIENCE * 2):
        if happened():
            return
        time.sleep(0.5)
    raise AssertionError("it did not happen")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what a job needs of this project."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("ovr_ray", "jobs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
@pytest.mark.long
def test_a_stopped_job_resumes_when_it_is_submitted_again(
    address: str, project: Path, cells: Path, tmp_path: Path
) -> None:
    recipe = plain_recipe(cells, tmp_path, search={"max_epochs": 30, "scheduler": "none"})
    recipe["tasks"] = {"crack": recipe["tasks"]["crack"] | {"trials": 2}}
    (project / "stopped.yaml").write_text(yaml.safe_dump(recipe))
    entrypoint = ("python", "jobs/tune.py", "stopped.yaml")
    begun = submit(address, *entrypoint, folder=project, options=("--no-wait", "--submission-id", "to-be-stopped"))
    assert begun.returncode == 0, begun.stdout
    run = RunFolder(UPath(tmp_path / "tiny"))
    wait_for(lambda: sum(len(trial.folder.epochs()) >= 2 for trial in run.trials()) == 2)
    stopped = ray("job", "stop", "--address", address, "to-be-stopped")
    assert "was stopped" in stopped.stdout, stopped.stdout
    before = {trial.folder.name: trial.folder.epochs() for trial in run.trials()}
    again = submit(address, *entrypoint, folder=project)
    assert again.returncode == 0, again.stdout
    for trial in run.trials():
        epochs, known = trial.folder.epochs(), len(before[trial.folder.name])
        assert epochs.epoch.tolist() == list(range(1, 31))
        assert epochs[:known].time.tolist() == before[trial.folder.name].time.tolist()


@pytest.mark.slow
def test_a_submitted_run_can_be_left_and_followed_again_and_its_model_is_fetched(
    address: str, cells: Path, tmp_path: Path
) -> None:
    recipe = plain_recipe(cells, tmp_path / "cluster", search={"max_epochs": 1})
    recipe["tasks"] = {"crack": recipe["tasks"]["crack"] | {"trials": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    verb = [sys.executable, "-m", "ovr_ray.commands.cli", "submit"]
    command = [*verb, str(tmp_path / "recipe.yaml"), "--address", address]
    environment = os.environ | TOKEN
    home = ["--output", str(tmp_path / "home")]
    left = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert left.stdout is not None
    assert left.stdout.readline().startswith("tune: job ")
    time.sleep(2)  # until it follows the job
    left.send_signal(signal.SIGINT)
    message = left.communicate(timeout=PATIENCE)[1]
    assert left.returncode == 130, message
    assert "the job continues, and the same command follows it" in message
    done = subprocess.run(
        [*command, *home], capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is under way" in done.stdout
    assert "AP: average precision" in done.stdout
    fetched = {file.name for file in (tmp_path / "home" / "tiny").iterdir()}
    assert fetched >= {"joint.pt", "metrics.json", "winners.json"}
    wrong = [*command, "--set=name=wrong", f"--set=data.labels={tmp_path / 'no.csv'}"]
    refused = subprocess.run(wrong, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "no.csv: no such file" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
@pytest.mark.long
def test_what_a_cluster_lacks_is_installed_for_the_job(address: str) -> None:
    code = (
        "from importlib.metadata import distributions as all; print(*[d.locate_file('') for d in all(name='ovr-ray')])"
    )
    environment = ("--runtime-env-json", json.dumps({"pip": ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}[lite]"]}))
    job = submit(address, "python", "-c", code, folder=PROJECT, options=environment)
    assert job.returncode == 0, job.stdout
    assert re.search("runtime_resources/pip/.*site-packages", job.stdout), job.stdout


@pytest.mark.slow
def test_images_runs_and_caches_are_not_uploaded(address: str, project: Path) -> None:
    shutil.copy(PROJECT / ".gitignore", project)
    for folder in ("data/images", "data/elpv", "runs", ".venv", ".git"):
        (project / folder).mkdir(parents=True)
        (project / folder / "large").write_bytes(bytes(1 << 20))
    job = submit(address, "du", "-sk", ".", folder=project)
    size = re.search(r"^(\d+)\s+\.$", job.stdout, re.MULTILINE)
    assert size is not None, job.stdout
    assert int(size.group(1)) < 1024


@pytest.mark.slow
def test_a_cluster_with_a_token_takes_no_job_without_it(address: str, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain_recipe(cells, tmp_path)))
    refused = run_cli_anew("submit", tmp_path / "recipe.yaml", "--address", address, RAY_AUTH_MODE="disabled")
    assert refused.exit_code == 2, refused.stderr
    assert f"--address {address}: takes no jobs from here" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_job_refuses_relative_paths_with_the_reason(address: str, project: Path, cells: Path) -> None:
    (project / "relative.yaml").write_text(yaml.safe_dump(plain_recipe(cells, Path("runs"))))
    job = submit(address, "python", "jobs/tune.py", "relative.yaml", folder=project)
    assert job.returncode != 0
    assert "storage: is a relative path, and a job runs in a copy of its folder" in job.stdout
    assert "failed" in job.stdout + job.stderr
