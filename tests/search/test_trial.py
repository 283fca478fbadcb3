from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ovr_ray.images import read_labels
from ovr_ray.recipe import Config, RecallGoal, Recipe
from ovr_ray.runs import RunFolder
from ovr_ray.search.messages import Order, TrialKey
from ovr_ray.search.trial import SearchContext
from ovr_ray.training import derived_seed


@pytest.fixture
def context(make_recipe: Callable[..., Recipe]) -> SearchContext:
    """Return the context of a search of the cells, whose first two rows count for no task."""
    tasks = {"crack": {}, "inactive": {"threshold": {"recall": 0.9}}}
    recipe = make_recipe(
        tasks=tasks, search={"seed": 7, "metric": "f1"}, augment={"rotation": 10}, checkpoints={"keep": 5}
    )
    table = read_labels(recipe.data, recipe.tasks).without([0, 1])
    return SearchContext(recipe, RunFolder.of(recipe), table, mean=[0.3], std=[0.2])


def test_a_trial_trains_on_the_train_split_and_validates_on_the_val_split(context: SearchContext) -> None:
    given = context.assignment(Order(TrialKey("inactive", 2), Config(), 3))
    table = context.table
    for labels, split in ((given.train_labels, "train"), (given.val_labels, "val")):
        counts = (table.splits == split) & table.labels.inactive.notna()
        assert counts.any()
        assert (np.isfinite(labels) == counts).all()
        assert (labels[counts] == table.labels.inactive[counts]).all()
    assert not np.isfinite(given.train_labels[:2]).any()


def test_a_balanced_trial_weighs_positives_by_its_own_task(context: SearchContext) -> None:
    for task in ("crack", "inactive"):
        labels = context.table.labels[task][context.table.splits == "train"]
        given = context.assignment(Order(TrialKey(task, 0), Config(), 3))
        assert given.pos_weight == pytest.approx((labels == 0).sum() / (labels == 1).sum())


def test_a_trial_is_given_its_folder_its_seed_and_what_the_recipe_says(context: SearchContext) -> None:
    recipe, config = context.recipe, Config(lr=1e-3, image_size=24, vertical_flip=0.0)
    given = context.assignment(Order(TrialKey("inactive", 2), config, 2))
    assert given.folder == context.run.trial("inactive", 2)
    assert (given.task, given.config, given.seed) == ("inactive", config, derived_seed(7, "inactive", 2))
    assert (given.epochs, given.max_epochs, given.score_column) == (2, 3, "val_f1")
    assert given.goal == RecallGoal(recall=0.9)
    assert (given.augment.rotation, given.augment.vertical_flip, given.augment.horizontal_flip) == (10, 0.0, 0.5)
    assert given.checkpoints == recipe.checkpoints
    card = given.card()
    assert (card.stored_size, card.image_size, card.channels, card.mean, card.std) == (32, 24, 1, [0.3], [0.2])
