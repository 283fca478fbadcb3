"""A cluster that `ray up` makes over ssh, on hosts in network namespaces, as docs/clusters.md describes it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.hosts import Hosts, missing
from tests.support import PATIENCE

PROJECT = Path(__file__).parents[2]
ADDRESS = "http://localhost:8265"
SUBMIT = ("ray", "job", "submit", "--address", ADDRESS, "--working-dir", ".", "--")
SIZE = " --num-cpus=1 --object-store-memory=200000000"
"""Options of ``ray start``: the hosts share this machine's two cores."""


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
        self.print(what)

    def print(self, what: str) -> None:
        """Print a line of the timeline."""
        print(f"{time.monotonic() - self.begin:5.0f} s  {what}", flush=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray up` of jobs/clusters/onprem.yaml on a head and two workers with a declared GPU each; `ray down` ends it."""
    if lacking := missing():
        packages = "apt-get install iproute2 openssh-server openssh-client rsync"
        message = f"test hosts need {', '.join(lacking)}: as root, {packages}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder, shared = tmp_path_factory.mktemp("hosts"), tmp_path_factory.mktemp("shared")
    with Hosts(folder, workers=2, shared=[PROJECT, shared]) as hosts:
        made = Cluster(hosts, shared / "onprem.yaml", shared)
        made.config.write_text(yaml.safe_dump(filled_in(hosts)))
        assert made.laptop("ray", "get-auth-token", "--generate").returncode == 0
        up = made.laptop("ray", "up", "-y", str(made.config))
        assert up.returncode == 0, up.stdout
        made.print("ray up has returned")
        made.wait_for(lambda: made.nodes() == {"head": 0, "w1": 1, "w2": 1}, "both workers have joined")
        tunnel_command = hosts.command("laptop", "ray", "dashboard", str(made.config), folder=PROJECT)
        with (folder / "tunnel.log").open("w") as log:
            tunnel = subprocess.Popen(tunnel_command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        made.wait_for(lambda: made.laptop("ray", "job", "list", "--address", ADDRESS).returncode == 0, "a tunnel")
        yield made
        down = made.laptop("ray", "down", "-y", str(made.config))
        tunnel.kill()
        tunnel.wait(30)
        assert down.returncode == 0, down.stdout
        made.print("ray down has returned")
        assert not made.runs_ray("head")


def filled_in(hosts: Hosts) -> dict[str, Any]:
    """Return jobs/clusters/onprem.yaml with the fields that a user fills in, and sizes that fit this machine."""
    config = yaml.safe_load((PROJECT / "jobs" / "clusters" / "onprem.yaml").read_text())
    addresses = [hosts.addresses[name] for name in hosts.workers]
    config["provider"] |= {"head_ip": hosts.addresses["head"], "worker_ips": addresses}
    config["auth"]["ssh_user"] = "root"
    config["head_start_ray_commands"][-1] += SIZE
    config["worker_start_ray_commands"][-1] += f"{SIZE} --num-gpus=1"
    return config
