"""A cluster on test hosts: commands on its laptop, jobs, its nodes, and the timeline of what happens on it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.hosts import Hosts
from tests.support import PATIENCE

PROJECT = Path(__file__).parents[2]
ADDRESS = "http://localhost:8265"
SUBMIT = ("ray", "job", "submit", "--address", ADDRESS, "--working-dir", ".", "--")


@dataclass
class Cluster:
    """Hosts with a running Ray, the file of their cluster, and a folder that all of them see."""

    hosts: Hosts
    config: Path
    shared: Path
    begin: float = field(default_factory=time.monotonic)

    def laptop(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the laptop, in this project's folder."""
        return self.hosts.run("laptop", *command, folder=PROJECT, **environment)

    def submit(self, *entrypoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit this project as a job, and wait for its end."""
        return self.laptop(*SUBMIT, *entrypoint, **environment)

    def start_job(self, *entrypoint: str) -> subprocess.Popen[str]:
        """Submit this project as a job, and return the process that waits for it."""
        return self.hosts.start("laptop", *SUBMIT, *entrypoint, folder=PROJECT)

    def nodes(self) -> dict[str, Any]:
        """Return the GPUs of every node that is alive, by host, as the head sees them."""
        code = (
            "import json, ray; ray.init(address='auto', logging_level=40, log_to_driver=False); "
            "alive = [node for node in ray.nodes() if node['Alive']]; "
            "print(json.dumps({node['NodeManagerHostname']: node['Resources'].get('GPU', 0) for node in alive}))"
        )
        done = self.hosts.run("head", str(Path.home() / "ovr-ray/.venv/bin/python"), "-c", code)
        return yaml.safe_load(done.stdout.splitlines()[-1])

    def runs_ray(self, host: str) -> bool:
        """Return whether a raylet runs on a host."""
        return "raylet" in self.hosts.run(host, "ps", "-eo", "args").stdout

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        """Check every two seconds; print the time when it has happened, for the timeline in docs/clusters.md."""
        end = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
            time.sleep(2)
        self.log(what)

    def log(self, what: str) -> None:
        """Print a line of the timeline."""
        print(f"{time.monotonic() - self.begin:5.0f} s  {what}", flush=True)
