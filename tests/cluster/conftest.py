"""A cluster that `ray up` makes over ssh, on hosts in network namespaces, as docs/clusters.md describes it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import ADDRESS, PROJECT, Cluster
from tests.cluster.hosts import Hosts, missing

SIZE = " --num-cpus=1 --object-store-memory=200000000"
"""Options of ``ray start``: the hosts share this machine's two cores."""


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
        made.log("ray up has returned")
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
        made.log("ray down has returned")
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
