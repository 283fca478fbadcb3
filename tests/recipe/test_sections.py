from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from ovr_ray.errors import BadInput
from ovr_ray.recipe import ColumnSplit, Config, PrecisionGoal, RecallGoal, Recipe, load, parse

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


def minimal(**more: Any) -> dict[str, Any]:
    """Return the shortest recipe as plain YAML types, with more sections."""
    return {"name": "a", "data": {"labels": "a.csv", "images": "."}, "tasks": {"crack": {}}} | more


def faults_of(raw: dict[str, Any]) -> str:
    """Return the message with which a recipe is refused."""
    with pytest.raises(BadInput) as caught:
        parse(raw)
    return str(caught.value)


def test_a_minimal_recipe_takes_the_defaults_and_a_task_reads_the_column_of_its_name() -> None:
    recipe = parse(minimal())
    assert recipe.tasks["crack"].column == "crack"
    assert recipe.data.separator == ";"
    assert recipe.search.metric == "average_precision"


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ({"default": {"lr": 1.0}, "space": {"lr": {"uniform": [0.1, 0.2]}}}, "tasks.crack.default.lr: 1.0 is outside"),
        ({"space": {"lr": {"uniform": [0.2, 0.1]}}}, "is not below"),
        ({"space": {"image_size": {"choice": [64, 500]}}}, "asks for 500 pixels a side"),
        ({"space": {"optimizer": {"choice": ["adam", "adamm"]}}}, "tasks.crack.space.optimizer.choice.1:"),
        ({"space": {"backbone": {"uniform": ["resnet18", "resnet34"]}}}, "a range needs two numbers"),
        ({"space": {"lr": {"randint": [0.001, 0.5]}}}, "randint needs whole numbers"),
        ({"default": {"batch_size": 1}}, "tasks.crack.default.batch_size:"),
        ({"space": {"lr": {"normal": [0, 1]}}}, "tasks.crack.space.lr:"),
        ("crack", "tasks.crack:"),
    ],
)
def test_an_impossible_task_is_refused_with_the_place_of_the_fault(task: Any, fault: str) -> None:
    assert fault in faults_of(minimal(tasks={"crack": task}))


@pytest.mark.parametrize("name", ["streak", "interruption", "f1", "value", "tasks"])
def test_a_fault_names_its_task_whatever_the_task_is_called(name: str) -> None:
    assert f"tasks.{name}.trials:" in faults_of(minimal(tasks={name: {"trials": 0}}))


@pytest.mark.parametrize("names", [["error"], ["row"], ["crack", "crack_probability"]])
def test_a_task_named_like_a_column_of_the_predictions_is_refused(names: list[str]) -> None:
    assert f"tasks.{names[-1]}: is the name of another column" in faults_of(minimal(tasks={name: {} for name in names}))


def test_a_recipe_needs_a_task() -> None:
    assert "tasks:" in faults_of(minimal(tasks={}))


def test_the_splits_leave_images_to_train_on() -> None:
    data = {"labels": "a.csv", "images": ".", "split": {"val": 0.5, "test": 0.5}}
    assert "val 0.5 and test 0.5 leave no images to train on" in faults_of(minimal(data=data))


def test_the_grace_period_lies_within_the_epochs() -> None:
    search = {"max_epochs": 3, "grace_epochs": 4}
    assert "search: grace_epochs 4 is more than max_epochs 3" in faults_of(minimal(search=search))


def test_trackers_are_checked_by_name_and_the_known_ones_are_listed() -> None:
    assert parse(minimal(search={"trackers": ["mlflow", "wandb"]})).search.trackers == ("mlflow", "wandb")
    message = faults_of(minimal(search={"trackers": ["mlflow", "neptun"]}))
    assert "search.trackers.1: no such tracker; installed: mlflow, wandb" in message
    assert "'neptun'" in message


def test_what_is_dumped_reads_back_the_same() -> None:
    task = {
        "default": {"lr": 1e-4},
        "space": {"lr": {"loguniform": [1e-5, 1e-3]}, "schedule": {"choice": ["cosine", {1: 1e-3, 6: 1e-4}]}},
        "threshold": {"recall": 0.9},
    }
    recipe = parse(minimal(tasks={"crack": task}))
    assert parse(yaml.safe_load(yaml.safe_dump(recipe.dump()))) == recipe


def test_resolved_paths_are_absolute_and_uris_stay() -> None:
    recipe = parse(minimal(storage="s3://bucket/runs"))
    assert recipe.relative_fields() == ["data.labels", "data.images"]
    assert Path(recipe.resolved().data.labels).is_absolute()
    assert recipe.resolved().storage == "s3://bucket/runs"
    assert recipe.resolved().relative_fields() == []


def test_a_task_knows_what_varies_what_is_fixed_and_every_option() -> None:
    space = {"lr": {"loguniform": [1e-5, 1e-3]}, "backbone": {"choice": ["a", "b"]}, "momentum": 0.5}
    task = parse(minimal(tasks={"crack": {"space": space, "default": {"batch_size": 8}}})).tasks["crack"]
    assert list(task.varied()) == ["backbone", "lr"]
    assert task.fixed() == {"momentum": 0.5, "batch_size": 8}
    assert [task.options(name) for name in ("backbone", "lr", "momentum", "batch_size", "optimizer")] == [
        ["a", "b"],
        [1e-5, 1e-3],
        [0.5],
        [8],
        ["adamw"],
    ]


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_recipe_that_we_ship_is_valid(file: Path) -> None:
    load(file)


def test_the_reference_recipe_shows_every_field() -> None:
    raw = yaml.safe_load((RECIPES / "reference.yaml").read_text())
    assert missing_fields(Recipe, raw) == []
    assert missing_fields(Config, raw["tasks"]["crack"]["default"]) == []


def test_the_reference_recipe_shows_the_defaults() -> None:
    shown = load(RECIPES / "reference.yaml")
    space = yaml.safe_load((RECIPES / "reference.yaml").read_text())["tasks"]["crack"]["space"]
    data = {"labels": "data/data.csv", "images": "data"}
    assert shown == parse({"name": "reference", "data": data, "tasks": {"crack": {"space": space}}})


def missing_fields(model: type[BaseModel], raw: dict[str, Any], path: str = "") -> list[str]:
    """Return the fields of a model, and of the models in it, that a mapping lacks."""
    missing = []
    for name, field in model.model_fields.items():
        if name not in raw:
            missing.append(f"{path}{name}")
            continue
        for kind in (field.annotation, *get_args(field.annotation)):
            alternatives = (ColumnSplit, RecallGoal, PrecisionGoal)  # shown in comments
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in alternatives:
                if name == "tasks":
                    missing += missing_fields(kind, raw[name]["crack"], "tasks.crack.")
                elif name not in ("default", "space"):  # their fields are Config's
                    missing += missing_fields(kind, raw[name], f"{path}{name}.")
    return missing
