"""How a trial copes with too little memory, and what its folder must hold; all else of a trial runs in test_run.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pandas as pd
import pytest
import torch

from ovr_ray.recipe import Recipe
from ovr_ray.runs import RunFolder
from ovr_ray.search.trial import Job
from ovr_ray.training.session import Session, in_parts
from tests.support import BACKBONE, EVERY_OPTION
from tests.model.test_training import IMAGES, batches

BATCH = 16


class Gpu:
    """Stands for a GPU that holds so many images of a network; there is none here."""

    def __init__(self, images: int) -> None:
        self.images, self.asked = images, list[int]()

    def train(self, parts: int) -> dict[str, str]:
        self.asked.append(parts)
        return {} if BATCH / parts <= self.images else {"out_of_memory": f"in {parts} parts"}


@pytest.mark.parametrize(("images", "asked"), [(16, [1]), (8, [1, 2]), (5, [1, 2, 4]), (2, [1, 2, 4, 8])])
def test_too_large_a_batch_is_taken_in_parts(images: int, asked: list[int]) -> None:
    gpu = Gpu(images)
    assert in_parts(gpu.train, BATCH) == {}
    assert gpu.asked == asked


def test_a_network_too_large_for_two_images_is_told() -> None:
    gpu = Gpu(images=1)
    assert in_parts(gpu.train, BATCH) == {"out_of_memory": "in 8 parts"}
    assert gpu.asked == [1, 2, 4, 8]


def test_another_reason_ends_it_at_once() -> None:
    asked = []
    told = in_parts(lambda parts: asked.append(parts) or {"diverged": "nan"}, BATCH)  # type: ignore[func-returns-value]
    assert told == {"diverged": "nan"}
    assert asked == [1]


def session(recipe: Recipe) -> Session:
    """Of the first trial, from what lies in its folder."""
    job = Job(recipe, RunFolder.of(recipe), pd.DataFrame(), {"crack": 3.0}, [0.3], [0.2])
    given = recipe.tasks["crack"].default.model_dump() | {"task": "crack", "number": 0}
    return Session(job.assignment(given), recipe, torch.device("cpu"), parts=1)


def train(trial: Session, epochs: int) -> None:
    for metrics in islice(trial.trainer.epochs(batches, lambda: batches(99), IMAGES), epochs):
        trial.save(metrics)


def test_a_trial_whose_weights_are_averaged_goes_on_from_its_folder_as_if_never_interrupted(
    make_recipe: Callable[..., Recipe],
) -> None:
    default = {"backbone": BACKBONE, "weights": None, "lr": 3e-3} | EVERY_OPTION
    recipes = [
        make_recipe(name=name, search={"max_epochs": 4}, tasks={"crack": {"default": default}})
        for name in ("undisturbed", "interrupted")
    ]
    train(session(recipes[0]), 4)
    train(session(recipes[1]), 2)
    torch.manual_seed(1234)  # a new process draws other numbers
    again = session(recipes[1])
    assert again.restored
    train(again, 4)
    expected, found = (RunFolder.of(recipe).trial("crack", 0).epochs() for recipe in recipes)
    assert found.epoch.tolist() == [1, 2, 3, 4]
    for metric in ("train_loss", "val_loss", "threshold", "lr"):
        assert found[metric].tolist() == pytest.approx(expected[metric].tolist(), abs=1e-6)
