"""Which Ray a search starts, and what it can be reached by."""

from __future__ import annotations

import os
import subprocess
import sys

LISTENING = """
import os, socket
from pathlib import Path
import ray
from ovr_ray import cluster

def ours():
    group = os.getpgid(0)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group or "ray" in (process / "cmdline").read_text():
                yield from (os.readlink(fd) for fd in (process / "fd").iterdir())
        except OSError:
            continue

def listening(table, length):
    for line in Path(table).read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A":
            yield local.partition(":")[0], f"socket:[{inode}]"

before = {*listening("/proc/net/tcp", 8), *listening("/proc/net/tcp6", 32)}
with cluster.connected():
    ray.get(ray.remote(lambda: 1).remote())
    after = {*listening("/proc/net/tcp", 8), *listening("/proc/net/tcp6", 32)}
    opened, held = after - before, set(ours())
    print(len(opened), *{address for address, inode in opened if inode in held})
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_a_ray_of_our_own_listens_on_loopback_alone() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    told = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    count, *addresses = told.split()
    assert int(count) > 5
    assert set(addresses) <= LOOPBACK
