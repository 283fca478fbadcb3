"""What runs in the process of a trial: the only place where training meets Tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray import tune

from ovr_ray import cluster
from ovr_ray.images import ImageSet, LabelTable
from ovr_ray.recipe import Recipe
from ovr_ray.runs import RunFolder
from ovr_ray.search.messages import Order, end_report, epoch_report
from ovr_ray.training import Assignment, Cause, EarlyEnd, EpochRow, derived_seed, train


@dataclass(frozen=True)
class SearchContext:
    """What all trials of a search share, besides the images.

    Attributes
    ----------
    recipe : Recipe
    run : RunFolder
    table : LabelTable
    mean, std : list of float
        Per channel, of the training images.
    """

    recipe: Recipe
    run: RunFolder
    table: LabelTable
    mean: list[float]
    std: list[float]

    def assignment(self, order: Order) -> Assignment:
        """Return what a trial trains."""
        task, number, recipe = order.key.task, order.key.number, self.recipe
        return Assignment(
            folder=self.run.trial(task, number),
            task=task,
            config=order.config,
            seed=derived_seed(recipe.search.seed, task, number),
            train_labels=self.table.labels_of(task, "train"),
            val_labels=self.table.labels_of(task, "val"),
            mean=self.mean,
            std=self.std,
            stored_size=recipe.data.image_size,
            channels=recipe.data.channels,
            epochs=order.epochs,
            max_epochs=recipe.search.max_epochs,
            goal=recipe.tasks[task].threshold,
            augment=order.config.augment(recipe.augment),
            score_column=recipe.search.score_column,
            checkpoints=recipe.checkpoints,
        )


def train_trial(config: dict[str, Any], context: SearchContext, images: ImageSet) -> None:
    """Train one sub-model, from its last checkpoint if it has one, and report every epoch to Tune."""
    given = context.assignment(Order.of(config))
    if given.folder.path.exists():
        share = cluster.assigned_here()
        end = train(given, images, share.cpus, share.gpus, on_epoch=_report)
    else:  # a failure would be tried again on this node
        end = EarlyEnd(Cause.UNSEEN, cluster.unseen_here(context.run.path))
    if end:
        tune.report(end_report(end))


def _report(row: EpochRow) -> None:
    tune.report(epoch_report(row))
