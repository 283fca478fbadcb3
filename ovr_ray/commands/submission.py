"""Run a recipe as jobs on a cluster, from a machine that is not part of it: submit, follow, fetch the results.

Run as a program on the cluster (``python -m ovr_ray.commands.submission RUN``), this file prints the results.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import re
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from types import FrameType
from typing import Final

import aiohttp
import requests
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console, RenderableType
from rich.live import Live
from upath import UPath

from ovr_ray import ray_quirks
from ovr_ray.errors import BadInput, Fault, Interrupted, RunFailed
from ovr_ray.recipe import Recipe, dumped
from ovr_ray.runs import RunFolder, refuse_foreign
from ovr_ray.search import read_ledger, status
from ovr_ray.storage import storage_errors

PACKAGE: Final = Path(__file__).parents[1]
"""Folder of this package, which the jobs are sent."""

POLL: Final = 2.0
"""Seconds between two looks at a job."""

LARGEST: Final = 1 << 29
"""Bytes that are fetched through a job's log; ``ray rsync-down`` can fetch more."""

LAST_LINES: Final = 20
"""Lines of a failed job's log that are shown."""

LOST: Final = (requests.RequestException, aiohttp.ClientError, RuntimeError)
"""Errors of Ray's client when the connection to the cluster is lost."""

BEGIN, END = "-----BEGIN RUN-----", "-----END RUN-----"


def submit(recipe: Recipe, address: str, tasks: Collection[str], home: Path, install: bool) -> Path:
    """Tune, combine, evaluate and report on a cluster; a job that runs there already is followed, not started again.

    Parameters
    ----------
    recipe : Recipe
        Relative paths are made absolute on this machine; the nodes must see them.
    address : str
        URL of the cluster's dashboard.
    tasks : collection of str
        Only these tasks; default: all.
    home : Path
        Folder in which a folder with the run's name is made.
    install : bool
        Have every node pip-install the requirements of this project that it lacks.

    Returns
    -------
    Path
        Folder with the results: those files of :meth:`RunFolder.results <ovr_ray.runs.RunFolder.results>` that exist.

    Raises
    ------
    BadInput
        If no cluster answers at the address, or a job found its input wrong.
    RunFailed
        If a job failed; shows the end of its log.
    Interrupted
        By Ctrl-C or a lost connection; the job continues.
    """
    ray_quirks.quiet(ray_quirks.CHATTY_CLIENT, logging.WARNING)
    run = RunFolder.of(recipe)
    refuse_foreign(RunFolder(UPath(home / recipe.name)).outputs())
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
            message = f"the cluster no longer answers ({error}); its job continues, and the same command follows it"
            raise Interrupted(message) from None


@dataclass
class _Jobs:
    """The jobs of one run on one cluster."""

    client: JobSubmissionClient
    run: RunFolder
    console: Console
    install: bool

    def do(self, verb: str, *arguments: str, folder: str) -> None:
        """Run a verb as a job, or find the one that runs, and follow it to its end."""
        tags = {"ovr_ray_run": str(self.run.path), "ovr_ray_verb": verb}
        under_way = [job for job in self.client.list_jobs() if job.metadata == tags and not job.status.is_terminal()]
        if under_way:
            name = str(under_way[0].submission_id)
            self.console.print(f"{verb}: job {name} is under way", highlight=False)
        else:
            name = self._start(["-m", "ovr_ray.commands.cli", verb, *arguments], folder, tags)
            self.console.print(f"{verb}: job {name}", highlight=False)
        self._check(self._follow(name, is_search=verb == "tune"), name)

    def fetch(self, home: Path, folder: str) -> Path:
        """Fetch the results through a job, because this machine may not see the cluster's storage."""
        name = self._start(["-m", "ovr_ray.commands.submission", str(self.run.path)], folder, {})
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
        """Follow a job to its end: with the live table on a terminal, else with its log."""
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, _interrupt) if is_main else None
        try:
            while not (job := self.client.get_job_info(name)).status.is_terminal():
                if is_search and self.console.is_terminal:
                    self._show_table(name)
                else:
                    asyncio.run(self._print_log(name))
            return job
        except KeyboardInterrupt:
            stop = f"ray job stop --address {self.client.get_address()} {name}"
            message = f"no longer followed; the job continues, and the same command follows it; {stop} stops it"
            raise Interrupted(message) from None
        finally:
            if is_main:
                signal.signal(signal.SIGINT, handler)

    def _show_table(self, name: str) -> None:
        with Live(console=self.console, refresh_per_second=2) as live:
            while not (job := self.client.get_job_info(name)).status.is_terminal():
                live.update(self._table() or f"{name}: {job.message or job.status}")
                time.sleep(POLL)

    def _table(self) -> RenderableType | None:
        """Return the live table if a search runs in the run folder and this machine sees it."""
        try:
            ledger = read_ledger(self.run) if self.run.exists() else None
        except storage_errors():  # for example a file that was replaced while it was read
            return None
        return status(ledger) if ledger and ledger.clock.is_alive else None

    async def _print_log(self, name: str) -> None:
        async for lines in self.client.tail_job_logs(name):
            self.console.out(lines, end="", highlight=False)

    def _check(self, job: JobDetails, name: str) -> None:
        if job.status == JobStatus.SUCCEEDED:
            return
        if job.status == JobStatus.STOPPED:
            raise Interrupted(f"job {name} was stopped; the same command resumes it")
        end = "\n".join(self.client.get_job_logs(name).rstrip().splitlines()[-LAST_LINES:])
        if job.driver_exit_code == BadInput.exit_code:
            raise BadInput(Fault(f"job {name}", f"found its input wrong:\n{end}"))
        raise RunFailed(f"job {name} failed: {job.message}\n{end}")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Stop at once on Ctrl-C. By default asyncio cancels its task, and one that is about to end ignores that."""
    raise KeyboardInterrupt


def _client(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RayError, ValueError, *LOST) as error:
        remedy = "ray dashboard CLUSTER.yaml makes a tunnel; a cluster with a token needs RAY_AUTH_MODE=token here, too"
        problem = f"takes no jobs from here: {str(error).strip().splitlines()[0]}"
        raise BadInput(Fault(f"--address {address}", problem, remedy)) from None


def _pack(recipe: Recipe, folder: Path) -> None:
    """Copy this package, and write the recipe, into the folder that the jobs get."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "recipe.yaml").write_text(dumped(recipe.resolved().dump()), encoding="utf-8")


def _requirements() -> list[str]:
    """Return the requirements of this project for pip, with those of EfficientNet-Lite0 and S3."""
    wanted = (line.partition(";") for line in requires("ovr-ray") or [])
    return [name.strip() for name, _, marker in wanted if not marker or re.search("extra == .(lite|aws).", marker)]


def _send(run: RunFolder) -> None:
    """Print the results of a run as text."""
    files = run.results()
    if (size := sum(file.stat().st_size for file in files)) > LARGEST:
        remedy = f"ray rsync-down CLUSTER.yaml {run.joint_model} . fetches it"
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
