"""Which Ray: the cluster that ``RAY_ADDRESS`` or a job names, else a new one on this machine alone."""

from __future__ import annotations

import importlib
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.recipe import Recipe, Resources
from ovr_ray.run_folder import storage_errors

CHATTY = (
    "ray._private.authentication",  # says that a local cluster asks for a token, which it finds by itself
    "ray.data",  # bad images are told by us; a failed task raises
    "ray.tune",  # failed trials are told by us; their traces are in trials/*/error.txt
)
"""Loggers whose warnings would hide what people want to read."""


HEAVY = "ovr_ray.verbs"
"""Imports all that is slow: seconds of work, of which as much as possible is done while Ray's processes start."""

ANSWER_WITHIN = 300.0
"""Seconds for a node to look at a file; a network folder that hangs takes for ever."""


def in_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster, or start one that ends with this block; an open connection is used and left open.

    Meanwhile another thread imports what the verbs need.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a table of its own, whatever the verbosity
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    imports = threading.Thread(target=importlib.import_module, args=[HEAVY], daemon=True)
    imports.start()  # and not Ray in a thread: its processes would end with that
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        except (ValueError, ConnectionError, RuntimeError) as error:
            remedy = "start that cluster, or unset RAY_ADDRESS to work on this machine alone"
            problem = f"no cluster can be joined at {os.environ['RAY_ADDRESS']!r}: {str(error).strip().splitlines()[0]}"
            raise BadInput(Fault("RAY_ADDRESS", problem, remedy)) from None
    else:
        _start_on_loopback(**quiet)
    imports.join()
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def _start_on_loopback(**quiet: Any) -> None:
    """A Ray of our own; a bare ``ray.init()`` would join whatever cluster another user left running on this machine.

    Ray binds its ports to all interfaces unless it thinks that it is on Windows or macOS, where it spares people the
    firewall's questions. ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`` says so too, but only before Ray is imported.

    Raises
    ------
    RunFailed
        If the machine is too busy for Ray to start.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises nothing narrower
        if "timed out during startup" not in str(error):
            raise
        raise RunFailed("Ray did not start within its 30 s: this machine is very busy; try again later") from None
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def has_several_nodes() -> bool:
    """Whether more than one node of the cluster is alive."""
    return len(_alive()) > 1


def refuse_unseen_storage(run: UPath, image: str) -> None:
    """Have every node that is up read a marker in the run folder, and an image.

    Raises
    ------
    BadInput
        Names the nodes that do not see what this one wrote, or the image, or that do not answer, and why.
    """
    run.mkdir(parents=True, exist_ok=True)
    marker = run / f".seen-{uuid.uuid4().hex}"
    marker.write_text("read by every node\n")
    try:
        lacking = _ask_every_node({"storage": str(marker), "data.images": image})
    finally:
        marker.unlink()
    remedies = {"cluster": "install this project on every node, or send it along: ray job submit --working-dir"}
    remedy = "name a folder that is mounted on every node, or a bucket that every node may use"
    told = {"storage": f"do not see what this one writes to {run}", "data.images": f"do not see {image}"}
    faults = []
    for field, reasons in lacking.items():
        whys = sorted(set(reasons.values()))
        problem = f"nodes {', '.join(sorted(reasons))} {told.get(field, 'do not answer')}: {'; '.join(whys)}"
        faults.append(Fault(field, problem, remedies.get(field, remedy)))
    if faults:
        raise BadInput(faults)


def _ask_every_node(files: dict[str, str]) -> dict[str, dict[str, str]]:
    """Field of the recipe, or ``cluster`` where a node does not answer -> node -> why."""
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = []
    for node in _alive():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append((node, look.options(scheduling_strategy=there).remote(files)))
    lacking: dict[str, dict[str, str]] = {}
    for node, answer in asked:
        try:
            unseen = ray.get(answer, timeout=ANSWER_WITHIN)
        except RayError as error:
            is_gone = node["NodeID"] not in {still["NodeID"] for still in _alive()}
            unseen = {} if is_gone else {"cluster": str(error).strip().splitlines()[-1]}
        for field, why in unseen.items():
            lacking.setdefault(field, {})[f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"] = why
    return lacking


def _look(files: dict[str, str]) -> dict[str, str]:
    """On a node: the fields of the recipe whose file cannot be read there, and why."""
    unseen = {}
    for field, file in files.items():
        try:
            with UPath(file).open("rb") as opened:
                opened.read(1)
        except storage_errors() as error:
            unseen[field] = getattr(error, "strerror", None) or str(error)
    return unseen


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def refuse_relative_paths(recipe: Recipe) -> None:
    """Raise :class:`BadInput` for paths that mean something else on another node, or in a job's copied folder."""
    if in_job():
        why = "a job runs in a copy of its folder that goes away"
    elif ray.is_initialized() and has_several_nodes():
        why = "this cluster has several nodes"
    else:
        return
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
    nodes = [node["Resources"] for node in _alive()]
    epsilon = 1e-6  # ten tenths of a GPU are ten trials
    return sum(
        min(int(node.get(kind, 0) / amount + epsilon) for kind, amount in need.items() if amount) for node in nodes
    )


def smallest_object_store() -> float:
    """Bytes, of the node that has least: each node on which a trial runs holds a copy of all images."""
    able = [node["Resources"] for node in _alive() if node["Resources"].get("CPU")]
    return min((node.get("object_store_memory", 0.0) for node in able), default=0.0)


def shares() -> tuple[dict[str, float], int]:
    """What a worker of a batch prediction asks for, and how many there can be.

    A GPU and its share of its node's CPUs, which decode for it; or one CPU, where no node has a GPU.
    """
    nodes = [node["Resources"] for node in _alive()]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if not with_gpu:
        return {"CPU": 1, "GPU": 0}, int(sum(node.get("CPU", 0) for node in nodes))
    cpus = min(int(node.get("CPU", 0) / node["GPU"]) for node in with_gpu)
    return {"CPU": cpus, "GPU": 1}, int(sum(node["GPU"] for node in with_gpu))
