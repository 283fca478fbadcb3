from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]


def test_rays_own_validator_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((PROJECT / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    workers = config["available_node_types"]["gpu_worker"]
    assert workers["min_workers"] == 0
    assert workers["max_workers"] > 1


def test_the_cluster_installs_what_is_locked() -> None:
    config = (PROJECT / "cluster.yaml").read_text()
    assert "constraints.txt" in config
    requires = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    (minor,) = set(re.findall(r"python3\.(\d+)", config))
    assert f">=3.{minor}" in requires
