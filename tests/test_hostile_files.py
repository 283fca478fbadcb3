"""Files that a stranger wrote: reading one must not run what is in it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.images import read_table
from ovr_ray.model import initial_weights, read_card
from ovr_ray.recipe import load
from ovr_ray.runs import RunFolder
from tests.support import copy_run


class Evil:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.fixture
def evil(tmp_path: Path) -> Evil:
    return Evil(tmp_path / "ran")


def test_the_trap_works(evil: Evil) -> None:
    pickle.loads(pickle.dumps(evil))
    assert evil.made.exists()


def test_a_recipe_runs_nothing(evil: Evil, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"name: !!python/object/apply:os.mkdir [{evil.made}]\n")
    with pytest.raises(BadInput, match=r"could not determine a constructor for the tag .*os\.mkdir"):
        load(tmp_path / "recipe.yaml")
    with pytest.raises(BadInput):
        load(tmp_path / "recipe.yaml", [f"search.seed=!!python/object/apply:os.mkdir [{evil.made}]"])
    assert not evil.made.exists()


def test_a_label_file_runs_nothing(evil: Evil, tmp_path: Path) -> None:
    storage = pa.array([pickle.dumps(evil)], pa.large_binary())
    assert ray.data  # its extension types are registered
    column = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)
    pq.write_table(pa.table({"filename": ["a.png"], "crack": column}), tmp_path / "labels.parquet")
    assert list(read_table(str(tmp_path / "labels.parquet"), ";")) == ["filename"]
    assert not evil.made.exists()


def test_weights_run_nothing(evil: Evil, tmp_path: Path) -> None:
    torch.save({"weight": evil}, tmp_path / "weights.pth")
    with pytest.raises(BadInput, match="is not a file of tensors"):
        initial_weights("resnet18", str(tmp_path / "weights.pth"))
    assert not evil.made.exists()


def test_a_checkpoint_runs_nothing_and_is_named(finished: RunFolder, evil: Evil, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    for trial in run.trials():
        for checkpoint, files in trial.checkpoints.items():
            card, weights = read_card(checkpoint, files), checkpoint / "weights.pt"
            assert card is not None
            torch.save({"weight": evil}, str(weights))
            text = (checkpoint / "sub_model.json").read_text()
            size = weights.stat().st_size
            (checkpoint / "sub_model.json").write_text(text.replace(str(card.weights_bytes), str(size)))
    with pytest.raises(BadInput, match=r"weights\.pt: is not a file of tensors"):
        ovr_ray.combine(run)
    assert not evil.made.exists()


@pytest.mark.slow
def test_nothing_that_ray_pickled_is_read(finished: RunFolder, evil: Evil, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    pickles = list(run.path.rglob("*.pkl"))
    assert pickles
    for file in pickles:
        file.write_bytes(pickle.dumps(evil))
    recipe = run.recipe()
    tasks = {name: task.model_copy(update={"trials": task.trials + 1}) for name, task in recipe.tasks.items()}
    ovr_ray.tune(recipe.model_copy(update={"tasks": tasks}))  # over the poisoned files
    assert len(run.trials()) == 8
    ovr_ray.combine(run)
    assert not evil.made.exists()
