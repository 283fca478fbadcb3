"""What one trial runs: the only place where training meets Tune."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.result import TIMESTEPS_TOTAL
from upath import UPath

from ovr_ray.images import Feed, ImageSet, LabelTable
from ovr_ray.model import (
    Card,
    Diverged,
    Trainer,
    choose_device,
    forget,
    is_out_of_memory,
    keep_pages,
    load_training,
    read_card,
    save,
)
from ovr_ray.recipe import Config, Recipe
from ovr_ray.run_folder import RunFolder, TrialFolder
from ovr_ray.search.multiplex import derived_seed

NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a full or locked disk says; to try again would only use up trials."""


@dataclass(frozen=True)
class Job:
    """What all trials of a search share, besides the images."""

    recipe: Recipe
    run: RunFolder
    table: LabelTable
    pos_weights: dict[str, float]
    mean: list[float]
    std: list[float]


def train_trial(config: dict[str, Any], job: Job, images: ImageSet) -> None:
    """Train one sub-model, from its last checkpoint if it has one, and report every epoch to Tune."""
    keep_pages()
    metric = f"val_{job.recipe.search.metric}"
    if not job.run.trial(config["task"], config["number"]).path.exists():
        # a node that joined after the search began was not asked; a failure would be tried again on it, and again
        unseen = f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}) does not see {job.run.path}"
        _report({"epoch": 0, metric: 0.0, "unseen": unseen})
        return
    assigned = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
    torch.backends.cudnn.benchmark = True  # all images are of one size
    device = choose_device(assigned.get("GPU", 0))
    end = in_parts(partial(_train, config, job, images, device), config["batch_size"])
    if end:
        _report({"epoch": 0, metric: 0.0} | end)  # a finite score: searchers choke on NaN


def in_parts(train: Callable[[int], dict[str, str]], batch_size: int) -> dict[str, str]:
    """Train with batches in 1, 2, 4 … parts, until the memory suffices or a part would have less than two images.

    Parameters
    ----------
    train : callable
        From a number of parts to why training ended too early: ``out_of_memory``, another reason, or nothing.
    batch_size : int

    Returns
    -------
    dict
        What the last call returned.
    """
    parts, most = 1, max(1, batch_size // 2)
    while "out_of_memory" in (end := train(parts)) and parts < most:
        torch.cuda.empty_cache()  # nothing where there is no GPU
        parts = min(2 * parts, most)
    return end


def _train(config: dict[str, Any], job: Job, images: ImageSet, device: torch.device, parts: int) -> dict[str, str]:
    """Epoch by epoch to the end; or why it ended before."""
    try:
        session = _Session(config, job, device, parts)
        trainer, batch_size = session.trainer, session.config.batch_size
        train = Feed(images, job.table.of(session.task, "train"), batch_size, device)
        val = Feed(images, job.table.of(session.task, "val"), max(2, 2 * batch_size // trainer.parts), device)
        augment = session.config.augment(job.recipe.augment)
        always = {"device": device.type, "parts": trainer.parts}
        if session.restored:  # the driver may not have heard of this epoch
            _report(session.restored | always)
        for metrics in trainer.epochs(lambda e: train.shuffled(e, trainer.seed, augment), val.ordered, len(train)):
            session.save(metrics | always)
            _report(metrics | always)
    except Diverged as reason:
        return {"diverged": str(reason)}
    except Unwritable as reason:
        return {"unwritable": str(reason)}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"out_of_memory": f"out of memory on {device} with batches in {parts} parts: {config}"}
    return {}


def _report(metrics: dict[str, Any]) -> None:
    """To Tune; the epoch is TensorBoard's step, as Tune's own count begins anew whenever a trial goes on."""
    tune.report(metrics | {TIMESTEPS_TOTAL: metrics["epoch"]})


class Unwritable(Exception):
    """The run folder takes no more."""


@contextmanager
def _storage(folder: TrialFolder) -> Iterator[None]:
    """Tells a full or locked disk from what is worth another try."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_MORE:
            raise
        raise Unwritable(f"{error.filename or folder.path}: {error.strerror}") from error


class _Session:
    """A trainer and what it leaves in its trial's folder."""

    def __init__(self, given: dict[str, Any], job: Job, device: torch.device, parts: int) -> None:
        recipe = job.recipe
        self.task, number = given["task"], given["number"]
        self.config = Config(**{name: value for name, value in given.items() if name in Config.model_fields})
        self._folder = job.run.trial(self.task, number)
        self._checkpoints, self._metric = recipe.checkpoints, f"val_{recipe.search.metric}"
        self._last_epoch = recipe.search.max_epochs
        checkpoint = self._latest_checkpoint()
        self._card = Card(
            task=self.task,
            config=self.config.model_dump(mode="json"),
            epoch=0,
            metrics={},
            threshold=0.5,
            stored_size=recipe.data.image_size,
            image_size=self.config.image_size or recipe.data.image_size,
            channels=recipe.data.channels,
            mean=job.mean,
            std=job.std,
        )
        seed = derived_seed(recipe.search.seed, self.task, number)
        torch.manual_seed(seed)
        sub_model = self._card.sub_model(weights=None if checkpoint else self.config.weights)
        weight = self.config.pos_weight
        self.trainer = Trainer(
            sub_model,
            self.config,
            pos_weight=job.pos_weights[self.task] if weight == "balanced" else weight,
            max_epochs=recipe.search.max_epochs,
            device=device,
            seed=seed,
            goal=recipe.tasks[self.task].threshold,
            parts=max(parts, checkpoint[1].metrics.get("parts", 1) if checkpoint else 1),
        )
        self.restored: dict[str, Any] | None = None
        self._rows: list[dict[str, Any]] = []
        if checkpoint:
            with _storage(self._folder):
                self._restore(*checkpoint)

    def _restore(self, checkpoint: UPath, card: Card) -> None:
        self.restored = card.metrics
        self.trainer.load_state_dict(load_training(checkpoint, self.trainer.sub_model))
        before = [{str(k): v for k, v in row.items()} for row in self._folder.epochs().to_dict("records")]
        self._rows = [*(row for row in before if row["epoch"] < card.epoch), card.metrics]
        self._folder.write_epochs(self._rows)

    def _whole_checkpoints(self) -> dict[UPath, Card]:
        return {path: card for path in self._folder.checkpoints() if (card := read_card(path))}

    def _latest_checkpoint(self) -> tuple[UPath, Card] | None:
        return max(self._whole_checkpoints().items(), key=lambda found: found[1].epoch, default=None)

    def save(self, metrics: dict[str, Any]) -> None:
        """Write the epoch's checkpoint, if one is due, and its row; raises :class:`Unwritable`."""
        with _storage(self._folder):
            self._save(metrics)

    def _save(self, metrics: dict[str, Any]) -> None:
        row = metrics | {"time": round(time.time(), 3)}
        epoch, rule = metrics["epoch"], self._checkpoints
        above = rule.above_f1 is not None and metrics["val_f1"] >= rule.above_f1
        if epoch % rule.every == 0 or above or epoch == self._last_epoch:
            card = replace(self._card, epoch=epoch, metrics=row, threshold=self.trainer.decision_threshold)
            save(self._folder.checkpoint(epoch), card, self.trainer.sub_model, self.trainer.state_dict())
            self._prune()
        self._rows.append(row)
        self._folder.write_epochs(self._rows)

    def _prune(self) -> None:
        """Keep the best checkpoints and the latest; only the latest has to know how to go on."""
        whole = self._whole_checkpoints()
        ranked = sorted(whole, key=lambda path: whole[path].rank(self._metric), reverse=True)
        latest = max(whole, key=lambda path: whole[path].epoch)
        best = ranked[: self._checkpoints.keep]
        stay = best if latest in best else ranked[: max(1, self._checkpoints.keep - 1)]
        for path in set(whole) - {latest}:
            forget(path, weights_too=path not in stay)
