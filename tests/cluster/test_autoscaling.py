"""Ray's real autoscaler, with nodes that are processes of this machine: GPUs are added on demand, all at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ovr_ray.runs import RunFolder
from tests.support import PATIENCE, end, free_port, plain_recipe

pytestmark = [pytest.mark.slow, pytest.mark.long]

NODE_TYPES = {
    "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
    "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
}
EMPTY_LISTS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "rsync_exclude",
    "rsync_filter",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
"""Fields of a cluster's file that are empty here."""


@pytest.fixture
def scaling() -> Iterator[tuple[str, Path]]:
    """The address and folder of a head without GPUs that starts nodes with GPUs on demand."""
    address = f"{socket.gethostbyname(socket.gethostname())}:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="ovr-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config = {
            "cluster_name": "scaling",
            "provider": {
                "type": "fake_multinode",
                "gcs_address": address,
                "launch_multiple": True,
                "disable_node_updaters": True,  # there is no ssh to them
                "disable_launch_config_check": True,
            },
            "available_node_types": {"ray.head.default": NODE_TYPES["head"], "gpu": NODE_TYPES["gpu"]},
            "head_node_type": "ray.head.default",
            "max_workers": 3,
            "upscaling_speed": 8,
            "idle_timeout_minutes": 5,
            "auth": {"ssh_user": "nobody"},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{key: [] for key in EMPTY_LISTS},
        }
        (folder / "scaling.yaml").write_text(yaml.safe_dump(config))
        ports = [f"--{what}={free_port()}" for what in ("dashboard-agent-listen-port", "ray-client-server-port")]
        size = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=200000000", "--disable-usage-stats"]
        where = [f"--port={address.rpartition(':')[2]}", f"--temp-dir={folder}", "--include-dashboard=false", *ports]
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", *where, *size]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}
        with (folder / "head.log").open("w") as log:
            head = subprocess.Popen(
                [*command, f"--autoscaling-config={folder / 'scaling.yaml'}"],
                stdout=log,
                stderr=log,
                env=environment | {"RAY_FAKE_CLUSTER": "1"},
            )
        try:
            yield address, folder
        finally:
            end(head)


def test_gpu_nodes_for_all_concurrent_trials_are_requested_at_once(
    scaling: tuple[str, Path], cells: Path, tmp_path: Path
) -> None:
    address, folder = scaling
    recipe = plain_recipe(cells, tmp_path, search={"max_concurrent": 3}, resources={"cpu": 1, "gpu": 1})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    searched = subprocess.run(
        [sys.executable, "jobs/tune.py", str(tmp_path / "recipe.yaml")],
        env=os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert searched.returncode == 0, searched.stdout + searched.stderr
    assert "Waiting for nodes with 1 CPU, 1 GPU, for 3 trials" in searched.stdout
    assert "Adding 3 node(s) of type gpu" in (folder / "session_latest" / "logs" / "monitor.log").read_text()
    assert len(RunFolder.open(tmp_path / "tiny").trials()) == 6
