"""A task has the same results in a search of two tasks and in one of twenty."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import ovr_ray
from data.synthetic import generate
from ovr_ray.recipe import parse
from ovr_ray.runs import RunFolder
from tests.support import plain_recipe

MEASURED_ANEW = ["images_per_s", "time"]


def searched(cells: Path, storage: Path, name: str, labels: list[str], stratify: list[str]) -> RunFolder:
    """Search these tasks with two trials each, of which the second is drawn; return the run."""
    recipe = plain_recipe(
        cells, storage, name=name, search={"max_epochs": 2, "searcher": "random", "scheduler": "none"}
    )
    recipe["data"]["split"] = {"stratify": stratify}
    recipe["tasks"] = {label: recipe["tasks"]["crack"] | {"trials": 2} for label in labels}
    return ovr_ray.tune(parse(recipe))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_task_is_trained_in_the_same_way_beside_one_other_task_and_beside_nineteen(tmp_path: Path) -> None:
    table = generate(tmp_path / "cells", count=120, size=40, rates={"crack": 0.4, "inactive": 0.25}, areas=True)
    labels = list(table.columns[1:])
    two, twenty = (
        searched(tmp_path / "cells", tmp_path, name, some, labels)
        for name, some in (("two", ["crack", "uneven-4"]), ("twenty", labels))
    )
    assert two.split().equals(twenty.split())
    for task in ("crack", "uneven-4"):
        for number in range(2):
            alone, beside = (run.trial(task, number) for run in (two, twenty))
            assert alone.record().config == beside.record().config
            assert len(alone.epochs()) == 2
            same, shown = (trial.epochs().drop(columns=MEASURED_ANEW) for trial in (alone, beside))
            pd.testing.assert_frame_equal(same, shown, rtol=1e-6)
