"""Which Ray: the cluster that ``RAY_ADDRESS`` or a job names, else a new one on this machine alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Recipe, Resources

CHATTY = (
    "ray._private.authentication",  # says that a local cluster asks for a token, which it finds by itself
    "ray.data",  # bad images are told by us; a failed task raises
    "ray.tune",  # failed trials are told by us; their traces are in trials/*/error.txt
)
"""Loggers whose warnings would hide what people want to read."""


def in_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster, or start one that ends with this block; an open connection is used and left open."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a table of its own, whatever the verbosity
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        except (ValueError, ConnectionError, RuntimeError) as error:
            remedy = "start that cluster, or unset RAY_ADDRESS to work on this machine alone"
            problem = f"no cluster can be joined at {os.environ['RAY_ADDRESS']!r}: {str(error).strip().splitlines()[0]}"
            raise BadInput(Fault("RAY_ADDRESS", problem, remedy)) from None
    else:  # a bare ray.init() would join whatever cluster another user left running on this machine
        ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def has_several_nodes() -> bool:
    """Whether more than one node of the cluster is alive."""
    return sum(node["Alive"] for node in ray.nodes()) > 1


def refuse_relative_paths(recipe: Recipe, why: str) -> None:
    """Raise :class:`BadInput` for paths that mean something else on another node, or in a job's copied folder."""
    remedy = "write an absolute path or a URI that every node sees, e.g. --set {}=/shared/…"
    faults = [
        Fault(field, f"is a relative path, and {why}", remedy.format(field)) for field in recipe.relative_fields()
    ]
    if faults:
        raise BadInput(faults)


def per_trial(resources: Resources) -> dict[str, float]:
    """What one trial asks Ray for, ``auto`` settled by what the cluster has."""
    gpu = resources.gpu
    if gpu == "auto":
        gpu = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    return {"CPU": resources.cpu, "GPU": gpu}


def slots(need: dict[str, float]) -> int:
    """How many trials fit the cluster as it is now, node by node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    epsilon = 1e-6  # ten tenths of a GPU are ten trials
    return sum(
        min(int(node.get(kind, 0) / amount + epsilon) for kind, amount in need.items() if amount) for node in nodes
    )
