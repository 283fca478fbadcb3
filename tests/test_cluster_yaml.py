from __future__ import annotations

import re
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((PROJECT / "cluster.yaml").read_text())


def test_rays_own_validator_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(CONFIG))
    workers = CONFIG["available_node_types"]["gpu_worker"]
    assert (workers["min_workers"], workers["resources"]["GPU"]) == (0, 1)
    assert workers["max_workers"] == CONFIG["max_workers"]


def test_its_image_has_the_locked_ray_and_a_python_that_we_support() -> None:
    locked = dict(re.findall(r"^(\S+)==(\S+)$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE))
    ray, minor = re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)-gpu", CONFIG["docker"]["image"]).groups()  # type: ignore[union-attr]
    assert ray == locked["ray"]
    assert minor in ("11", "12", "13")
    assert any("constraints.txt" in command for command in CONFIG["setup_commands"])
