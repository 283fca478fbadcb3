"""Which Ray is used: the cluster that ``RAY_ADDRESS`` or a job names, else a new one on this machine alone."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from upath import UPath

from ovr_ray import ray_quirks
from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.recipe import Recipe, Resources
from ovr_ray.storage import storage_errors

ANSWER_WITHIN = 300.0
"""Seconds in which a node has to read a file; a network folder that hangs never answers."""


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs that one worker holds."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return ", ".join(f"{amount:g} {kind}" for kind, amount in self.amounts().items() if amount)

    def amounts(self) -> dict[str, float]:
        """Return the amounts by Ray's names of resources."""
        return {"CPU": self.cpus, "GPU": self.gpus}


@contextmanager
def connected(meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
    """Join the cluster, or start one that ends with this block; an open connection is used and left open.

    Parameters
    ----------
    meanwhile : callable, optional
        Runs in a thread while Ray's processes start: imports that take seconds.
    """
    if ray.is_initialized():
        yield
        return
    with ray_quirks.environment(ray_quirks.ON_START, keep_users=True):
        ray_quirks.quiet(ray_quirks.CHATTY, logging.CRITICAL)
        imports = threading.Thread(target=meanwhile, daemon=True) if meanwhile else None
        if imports:  # the other way round does not work: Ray's processes end with the thread that started them
            imports.start()
        _start()
        if imports:
            imports.join()
        try:
            yield
        finally:
            ray.shutdown()


def _start() -> None:
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, **options)
        except (ValueError, ConnectionError, RuntimeError) as error:
            remedy = "start that cluster, or unset RAY_ADDRESS to work on this machine alone"
            problem = f"no cluster can be joined at {address!r}: {str(error).strip().splitlines()[0]}"
            raise BadInput(Fault("RAY_ADDRESS", problem, remedy)) from None
        return
    _refuse_long_temporary_folder()
    try:
        with ray_quirks.loopback_only():
            # a bare ray.init() would join any cluster that another user left running on this machine
            ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # Ray raises nothing narrower
        if ray_quirks.SLOW_START not in str(error):
            raise
        raise RunFailed("Ray did not start within its 30 s: this machine is very busy; try again later") from None


def _refuse_long_temporary_folder() -> None:
    given = [(name, os.environ[name]) for name in ray_quirks.TEMPORARY if name in os.environ]
    for name, folder in given[:1]:
        if excess := ray_quirks.too_long_for_sockets(folder):
            problem = f"is too long, by {excess} bytes, because Ray makes sockets in it"
            raise BadInput(Fault(f"{name}={folder!r}", problem, f"for example: export {name}=/tmp"))


def has_several_nodes() -> bool:
    """Return whether more than one node of the cluster is alive."""
    return len(_alive()) > 1


def refuse_unseen_storage(run: UPath, image: str) -> None:
    """Have every node that is up read a marker in the run folder, and an image.

    Raises
    ------
    BadInput
        Names the nodes that cannot read the marker or the image, or that do not answer, and why.
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
    problems = {"storage": f"do not see what this one writes to {run}", "data.images": f"do not see {image}"}
    faults = []
    for field, reasons in lacking.items():
        whys = sorted(set(reasons.values()))
        problem = f"nodes {', '.join(sorted(reasons))} {problems.get(field, 'do not answer')}: {'; '.join(whys)}"
        faults.append(Fault(field, problem, remedies.get(field, remedy)))
    if faults:
        raise BadInput(faults)


def _ask_every_node(files: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return field of the recipe, or ``cluster`` where a node does not answer -> node -> reason."""
    look = ray.remote(num_cpus=0, max_retries=0)(_unreadable)
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


def _unreadable(files: dict[str, str]) -> dict[str, str]:
    """Run on a node; return the fields of the recipe whose file cannot be read there, and why."""
    unseen = {}
    for field, file in files.items():
        try:
            with UPath(file).open("rb") as opened:
                opened.read(1)
        except storage_errors() as error:
            unseen[field] = getattr(error, "strerror", None) or str(error)
    return unseen


def unseen_here(path: UPath) -> str:
    """Return the message of a worker whose node does not see a folder.

    Nodes that join after a search began were not asked by :func:`refuse_unseen_storage`.
    """
    return f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}) does not see {path}"


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def refuse_relative_paths(recipe: Recipe) -> None:
    """Raise :class:`BadInput` for paths that mean something else on another node, or in a job's copied folder."""
    if ray_quirks.in_job():
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


def per_trial(resources: Resources) -> Share:
    """Return what one trial asks Ray for; ``auto`` depends on what the cluster has.

    Ray counts Apple's GPU, too. It is not assigned: every process on such a machine may use it, and trials share it.
    """
    gpus = resources.gpu
    if gpus == "auto":
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 and not _is_apples() else 0
    return Share(resources.cpu, gpus)


def found_no_gpu(resources: Resources, need: Share) -> bool:
    """Return whether ``auto`` means that trials train on CPUs."""
    return resources.gpu == "auto" and not need.gpus and not _is_apples()


def _is_apples() -> bool:
    import torch  # takes a second; few processes that join a cluster need it

    return torch.backends.mps.is_available()


def slots(need: Share) -> int:
    """Return how many trials fit the cluster as it is now, counted node by node."""
    nodes = [node["Resources"] for node in _alive()]
    epsilon = 1e-6  # ten tenths of a GPU are ten trials
    return sum(
        min(int(node.get(kind, 0) / amount + epsilon) for kind, amount in need.amounts().items() if amount)
        for node in nodes
    )


def smallest_object_store() -> float:
    """Return the bytes of the smallest object store that holds all images: of nodes that train, and the driver's."""
    own = ray.get_runtime_context().get_node_id()
    able = [node["Resources"] for node in _alive() if node["Resources"].get("CPU") or node["NodeID"] == own]
    return min((node.get("object_store_memory", 0.0) for node in able), default=0.0)


def prediction_share() -> tuple[Share, int]:
    """Return what one worker of a batch prediction holds, and how many workers there can be.

    A worker holds a GPU and its share of the node's CPUs, which decode for it; or one CPU, if no node has a GPU.
    """
    nodes = [node["Resources"] for node in _alive()]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if not with_gpu:
        return Share(cpus=1, gpus=0), int(sum(node.get("CPU", 0) for node in nodes))
    cpus = min(int(node.get("CPU", 0) / node["GPU"]) for node in with_gpu)
    return Share(cpus, gpus=1), int(sum(node["GPU"] for node in with_gpu))


def assigned_here() -> Share:
    """Return what Ray assigned to this task or actor."""
    return Share(*ray_quirks.assigned())
