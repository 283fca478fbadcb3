"""Batch prediction with a joint model, in the processes of a cluster or in this one."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import pandas as pd
import ray
from ray.exceptions import RayError
from upath import UPath

from ovr_ray import cluster
from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.images import progress
from ovr_ray.joint import JointMetadata, ModelFiles, read_metadata
from ovr_ray.recipe import Recipe, parse
from ovr_ray.results.finding import located
from ovr_ray.results.worker import answer
from ovr_ray.runs import RunFolder, joint_model_in
from ovr_ray.storage import location

CHUNK: Final = 128
"""Images that a worker predicts at a time. A prediction of no more images starts no cluster."""


class SavedModel:
    """A joint model's file, its metadata, and the run folder that it lies in, if it lies in one.

    Parameters
    ----------
    path : str
        A ``joint.pt``, a ``joint.onnx``, or a run folder that has a ``joint.pt``.

    Attributes
    ----------
    file : UPath
    digest : str
        SHA-256 of the file, in hexadecimal.
    metadata : JointMetadata
    run : RunFolder or None

    Raises
    ------
    BadInput
        If there is no such file, or it is no joint model.
    """

    def __init__(self, path: str) -> None:
        self.file = location(path).absolute()
        if self.file.is_dir():
            folder = self.file
            self.file = joint_model_in(folder)
            if not self.file.exists() and RunFolder(folder).exists():
                raise BadInput(Fault(path, f"this run has no {self.file.name} yet", f"ovr-ray combine {path}"))
        if not self.file.exists():
            raise BadInput(Fault(path, "no such model", "give a joint.pt or joint.onnx, or a run folder that has one"))
        content = self.file.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        self.metadata = read_metadata(content, self.file)
        self.run = RunFolder.around(self.file)

    @cached_property
    def files(self) -> ModelFiles:
        """The file that answers on a GPU, and the one that answers on CPUs."""
        return ModelFiles.of(self.file, self.digest)

    def recipe(self) -> Recipe:
        """Return the recipe that the model was made with."""
        return parse(self.metadata.recipe, str(self.file))


def predict(
    model: SavedModel, files: Sequence[str] | pd.DataFrame, root: str = "", workers: int | None = None
) -> pd.DataFrame:
    """Predict probabilities and decisions for image files.

    Parameters
    ----------
    model : SavedModel
    files : sequence of str, or DataFrame
        Paths or URIs, below ``root`` if it is given; or the result of :func:`find_images`.
    root : str
    workers : int, optional
        Largest number of processes; default: one per GPU, or one per CPU if there is no GPU.

    Returns
    -------
    DataFrame
        One row per file, in the given order: ``filename``; for every label ``<label>_probability`` (float) and
        ``<label>`` (0/1); ``error``, the reason why a file could not be read. Its other cells are empty.
    """
    if isinstance(files, pd.DataFrame):
        images = files
    else:  # below a root, as in training, a name is a plain name whatever it looks like
        images = located([f"{root}/{name}" for name in files] if root else files).assign(filename=list(files))
    chunks = [images.iloc[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    answers = {}
    with progress(len(images)) as advance:
        for number, table in in_turn(model, chunks, answer, workers):
            answers[number] = table
            advance(len(table))
    table = pd.concat([answers[number] for number in range(len(chunks))], ignore_index=True)
    return table.astype(dict.fromkeys(model.metadata.labels, "Int64"))


def in_turn(
    model: SavedModel,
    chunks: Sequence[pd.DataFrame],
    work: Callable[..., pd.DataFrame],
    workers: int | None = None,
    folder: UPath | None = None,
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Apply ``work`` to every chunk of images on the cluster; a few images are predicted here, without Ray.

    Parameters
    ----------
    model : SavedModel
    chunks : sequence of DataFrame
        ``filename`` and ``path``; all but the last of one length.
    work : callable
        Has the signature of :func:`ovr_ray.results.worker.answer`.
    workers : int, optional
    folder : UPath, optional
        Folder that the workers write to; every node must see it.

    Yields
    ------
    int, DataFrame
        Number of a chunk, and what ``work`` returned for it, in the order in which they end.
    """
    if sum(map(len, chunks)) <= CHUNK and not (ray.is_initialized() or os.environ.get("RAY_ADDRESS")):
        for number, chunk in enumerate(chunks):
            yield number, work(chunk, model.files, model.metadata)
        return
    with cluster.connected():
        if folder is not None and cluster.has_several_nodes():
            cluster.refuse_unseen_storage(folder, chunks[0]["path"].iloc[0])
        share, places = cluster.prediction_share()
        idle: list[Remote]
        if share.gpus:
            idle = _on_gpus(work, share, min(workers or places, places))
        else:  # there may be no node yet
            idle = [ray.remote(num_cpus=share.cpus)(work)] * max(1, workers or places)
        waiting = deque(enumerate(chunks))
        running: dict[ray.ObjectRef, tuple[int, Remote]] = {}
        try:
            while waiting or running:
                while waiting and idle:
                    (number, chunk), worker = waiting.popleft(), idle.pop()
                    running[worker.remote(chunk, model.files, model.metadata)] = number, worker
                (done,), _ = ray.wait(list(running))
                number, worker = running.pop(done)
                idle.append(worker)
                yield number, ray.get(done)
        except RayError as error:  # a full disk, a model that a node does not see
            raise RunFailed(f"prediction failed: {str(error).strip().splitlines()[-1]}") from error


class Remote(Protocol):
    """What answers with one chunk at a time: a task of Ray's, or the method of an actor."""

    def remote(self, chunk: pd.DataFrame, model: ModelFiles, metadata: JointMetadata) -> ray.ObjectRef:
        """Start to answer."""


class _Worker:
    """An actor that keeps one GPU.

    A process of tasks would be handed another GPU with its next task, while its model stays on the first.
    """

    def __init__(self, work: Callable[..., pd.DataFrame]) -> None:
        self._work = work

    def answer(self, chunk: pd.DataFrame, model: ModelFiles, metadata: JointMetadata) -> pd.DataFrame:
        """Answer with a chunk."""
        return self._work(chunk, model, metadata)


@dataclass(frozen=True)
class _Actor:
    """A :class:`Remote` that keeps its actor alive."""

    handle: Any

    def remote(self, chunk: pd.DataFrame, model: ModelFiles, metadata: JointMetadata) -> ray.ObjectRef:
        return self.handle.answer.remote(chunk, model, metadata)


def _on_gpus(work: Callable[..., pd.DataFrame], share: cluster.Share, count: int) -> list[Remote]:
    """Start this many actors; one whose process or node is lost is started again, and its chunk too."""
    options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": -1, "max_task_retries": 3}
    actor = ray.remote(**options)(_Worker)
    return [_Actor(actor.remote(work)) for _ in range(count)]
