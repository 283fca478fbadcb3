"""Which Ray a search starts, from where it can be reached, and how many trials it has room for."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import ray
import torch

from ovr_ray import cluster
from ovr_ray.errors import BadInput, RunFailed
from ovr_ray.recipe import Resources
from tests.support import PATIENCE

LISTENING = """
import os
from pathlib import Path
import ray
from ovr_ray import cluster
from tests.support import ancestors

def sockets_of_ours():
    for process in Path("/proc").glob("[0-9]*"):  # other tests start a Ray of their own at the same time
        try:
            is_ours = os.getpid() in (int(process.name), *ancestors(int(process.name)))
            handles = list((process / "fd").iterdir()) if is_ours else []
        except OSError:
            continue
        for handle in handles:
            try:
                yield os.readlink(handle)
            except OSError:
                continue

def listening():
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                yield local.partition(":")[0], f"socket:[{inode}]"

before = set(listening())
with cluster.connected():
    ray.get(ray.remote(lambda: 1).remote())
    opened, held = set(listening()) - before, set(sockets_of_ours())
    print(*(address for address, socket in opened if socket in held))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
def test_a_ray_of_our_own_listens_on_loopback_alone() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    printed = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
    assert len(printed.split()) > 5
    assert set(printed.split()) <= LOOPBACK


def test_a_machine_too_busy_for_ray_is_reported_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process have a Ray
    monkeypatch.setattr(ray, "init", too_slow)  # the machine cannot be made so slow for one test
    with pytest.raises(RunFailed, match="very busy"), cluster.connected():
        pass


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_that_is_too_long_for_rays_sockets_is_told_before_ray_starts(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, folder := f"/tmp/{'x' * 100}")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process have a Ray
    told = rf"{variable}='{folder}': is too long, by \d+ bytes, .*\n    -> for example: export {variable}=/tmp"
    with pytest.raises(BadInput, match=told), cluster.connected():
        pass


@pytest.mark.usefixtures("ray_session")
def test_trials_share_gpus_by_fractions_and_are_not_started_beyond_them() -> None:
    assert cluster.per_trial(Resources()) == cluster.Share(cpus=1, gpus=1)  # two GPUs are declared
    assert not cluster.found_no_gpu(Resources(), cluster.per_trial(Resources()))
    assert cluster.slots(cluster.Share(0.1, 0.5)) == 4
    assert cluster.slots(cluster.Share(0.1, 0.1)) == 20
    assert cluster.slots(cluster.Share(1, 0)) == 2
    assert cluster.slots(cluster.Share(4, 0)) == 0


@pytest.mark.usefixtures("ray_session")
def test_apples_gpu_is_shared_by_all_trials_and_assigned_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert cluster.per_trial(Resources()) == cluster.Share(cpus=1, gpus=0)
    assert not cluster.found_no_gpu(Resources(), cluster.per_trial(Resources()))


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_without_a_gpu_is_told_only_where_the_recipe_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert cluster.found_no_gpu(Resources(), cluster.per_trial(Resources()))
    assert not cluster.found_no_gpu(Resources(gpu=0), cluster.per_trial(Resources(gpu=0)))
