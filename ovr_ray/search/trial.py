"""What one trial runs: the only place where training meets Tune."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.result import TIMESTEPS_TOTAL

from ovr_ray.images import Feed, ImageSet, LabelTable
from ovr_ray.model import Diverged, choose_device, is_out_of_memory, keep_pages
from ovr_ray.recipe import Config, Recipe
from ovr_ray.run_folder import RunFolder
from ovr_ray.session import Assignment, Session, Unwritable, derived_seed, in_parts


@dataclass(frozen=True)
class Job:
    """What all trials of a search share, besides the images."""

    recipe: Recipe
    run: RunFolder
    table: LabelTable
    pos_weights: dict[str, float]
    mean: list[float]
    std: list[float]

    def assignment(self, given: dict[str, Any]) -> Assignment:
        """What a trial trains, from what the searcher gave it."""
        task, number, recipe = given["task"], given["number"], self.recipe
        return Assignment(
            folder=self.run.trial(task, number),
            task=task,
            config=Config(**{name: value for name, value in given.items() if name in Config.model_fields}),
            seed=derived_seed(recipe.search.seed, task, number),
            pos_weight=self.pos_weights[task],
            mean=self.mean,
            std=self.std,
            epochs=recipe.search.max_epochs,
            metric=f"val_{recipe.search.metric}",
            checkpoints=recipe.checkpoints,
        )


def train_trial(config: dict[str, Any], job: Job, images: ImageSet) -> None:
    """Train one sub-model, from its last checkpoint if it has one, and report every epoch to Tune."""
    keep_pages()
    torch.cuda.empty_cache()  # of the trial that had this process before; nothing where there is no GPU
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


def _train(config: dict[str, Any], job: Job, images: ImageSet, device: torch.device, parts: int) -> dict[str, str]:
    """Epoch by epoch to the end; or why it ended before."""
    try:
        given = job.assignment(config)
        session = Session(given, job.recipe, device, parts)
        trainer, batch_size = session.trainer, given.config.batch_size
        train = Feed(images, job.table.of(given.task, "train"), batch_size, device)
        val = Feed(images, job.table.of(given.task, "val"), max(2, 2 * batch_size // trainer.parts), device)
        augment = given.config.augment(job.recipe.augment)
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
