from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ovr_ray.errors import BadInput
from ovr_ray.recipe import LogUniform, extended, load, parse

MINIMAL: dict[str, Any] = {"name": "a", "data": {"labels": "a.csv", "images": "."}, "tasks": {"crack": {}}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the file of a minimal recipe."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


def test_all_faults_come_at_once_each_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        """
name: "bad/name"
data: {labels: x.csv, imges: im, split: {val: 0.5, test: 0.6}}
tasks:
  crack:
    default: {lr: fast}
    space: {lr: {loguniform: [-1, 1.0e-3]}, schedule: {2: 1.0e-3}, batch_size: 0, backbone: {choice: []}}
    threshold: {recall: 3}
"""
    )
    with pytest.raises(BadInput) as caught:
        load(file, ["search.seed=-3"])
    for path in (
        "name:",
        "data.images:",
        "data.imges:",
        "data.split:",
        "tasks.crack.default.lr:",
        "tasks.crack.space.lr.loguniform.0:",
        "tasks.crack.space.schedule:",
        "tasks.crack.space.batch_size:",
        "tasks.crack.space.backbone.choice:",
        "tasks.crack.threshold.recall:",
        "search.seed:",
    ):
        assert f"{file}: {path}" in str(caught.value)
    assert "did you mean 'images'?" in str(caught.value)
    assert caught.value.exit_code == 2


def test_two_tasks_of_one_name_are_an_error_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("tasks:\n  crack: {}\n  crack: {}\n")
    with pytest.raises(BadInput, match=r"line 3.*'crack' is here twice"):
        load(file)


@pytest.mark.parametrize("text", ["a: [1", "just words", "- a\n- b", "!!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_recipe_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"recipe\.yaml"):
        load(file)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BadInput, match=r"nowhere.yaml: No such file"):
        load("nowhere.yaml")


def test_overrides_reach_any_depth_and_are_yaml(file: Path) -> None:
    recipe = load(file, ["search.max_epochs=7", "tasks.crack.space.lr={loguniform: [1e-5, 1e-3]}", "data.group=null"])
    assert recipe.search.max_epochs == 7
    assert recipe.tasks["crack"].varied()["lr"] == LogUniform[float](loguniform=(1e-5, 1e-3))


def test_an_override_of_one_task_does_not_change_those_that_share_its_anchor(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: a\ndata: {labels: a.csv, images: .}\ntasks:\n  a: &a {default: {lr: 0.1}}\n  b: *a\n")
    recipe = load(file, ["tasks.a.default.lr=0.2"])
    assert (recipe.tasks["a"].default.lr, recipe.tasks["b"].default.lr) == (0.2, 0.1)


@pytest.mark.parametrize("override", ["search.max_epochs", "name.first=1", "=3", "search.seed={"])
def test_a_malformed_override_is_refused(override: str, file: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load(file, [override])
    assert str(caught.value).startswith(f"--set {override}: ")


def test_a_recipe_is_extended_by_the_same_number_of_trials_however_often_it_is_asked_for() -> None:
    recipe = parse(MINIMAL | {"tasks": {"crack": {"trials": 5}, "inactive": {"trials": 3}}})
    more = extended(recipe, ["crack=+10"])
    assert [task.trials for task in more.tasks.values()] == [15, 3]
    assert extended(recipe, ["crack=+10"]) == more


def test_all_extensions_that_cannot_be_made_are_named_at_once() -> None:
    recipe = parse(MINIMAL | {"tasks": {"crack": {"trials": 5}}})
    with pytest.raises(BadInput) as caught:
        extended(recipe, ["crack=10", "crak=+1"])
    assert "--extend crack=10: is not of the form TASK=+N" in str(caught.value)
    assert "--extend crak=+1: no such task\n    -> tasks: crack" in str(caught.value)
