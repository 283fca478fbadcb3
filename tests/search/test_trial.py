"""How a trial copes with too little memory; all else of a trial runs in test_run.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ovr_ray.recipe import Recipe
from ovr_ray.run_folder import RunFolder
from ovr_ray.search import trial
from ovr_ray.search.trial import Job, train_trial

CONFIG = {"task": "crack", "number": 0, "batch_size": 16, "backbone": "resnet101"}


class SmallGpu:
    """Stands for the training of a network on a GPU that holds so many of its images; there is none here."""

    def __init__(self, images: int) -> None:
        self.images, self.parts = images, list[int]()

    def __call__(self, *given: Any) -> dict[str, str]:
        parts = given[-1]
        self.parts.append(parts)
        return {} if CONFIG["batch_size"] / parts <= self.images else {"out_of_memory": f"in {parts} parts: {CONFIG}"}  # type: ignore[operator]


@pytest.fixture
def run_trial(
    make_recipe: Callable[..., Recipe], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[SmallGpu], list[dict[str, Any]]]:
    recipe = make_recipe()
    run = RunFolder.of(recipe)
    run.trial("crack", 0).path.mkdir(parents=True)
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "_report", reported.append)

    def run_it(gpu: SmallGpu) -> list[dict[str, Any]]:
        monkeypatch.setattr(trial, "_train", gpu)
        train_trial(CONFIG, Job(recipe, run, None, {}, [], []), None, None)  # type: ignore[arg-type]
        return reported

    return run_it


def test_too_large_a_batch_is_taken_in_parts(run_trial: Callable[[SmallGpu], list[dict[str, Any]]]) -> None:
    gpu = SmallGpu(images=4)
    assert run_trial(gpu) == []
    assert gpu.parts == [1, 2, 4]


def test_a_network_too_large_for_two_images_is_told_with_its_config(
    run_trial: Callable[[SmallGpu], list[dict[str, Any]]],
) -> None:
    gpu = SmallGpu(images=1)
    (last,) = run_trial(gpu)
    assert gpu.parts == [1, 2, 4, 8]
    assert "resnet101" in last["out_of_memory"]
    assert last["val_f1"] == 0.0


def test_cuda_says_out_of_memory_in_a_way_that_is_known() -> None:
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert torch.cuda.OutOfMemoryError is torch.OutOfMemoryError
