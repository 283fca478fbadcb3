from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from ovr_ray.errors import BadInput
from ovr_ray.recipe import ColumnSplit, Config, PrecisionGoal, RecallGoal, Recipe, extended, load, parse

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


def minimal(**more: Any) -> dict[str, Any]:
    return {"name": "a", "data": {"labels": "a.csv", "images": "."}, "tasks": {"crack": {}}} | more


def faults_of(raw: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        parse(raw)
    return str(caught.value)


def test_a_minimal_recipe_takes_the_defaults_and_a_task_reads_the_column_of_its_name() -> None:
    recipe = parse(minimal())
    assert recipe.tasks["crack"].column == "crack"
    assert recipe.data.separator == ";"
    assert recipe.search.metric == "average_precision"


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
    told = str(caught.value)
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
        assert f"{file}: {path}" in told
    assert "did you mean 'images'?" in told
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("task", "told"),
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
def test_an_impossible_task_is_told_where(task: Any, told: str) -> None:
    assert told in faults_of(minimal(tasks={"crack": task}))


@pytest.mark.parametrize("name", ["streak", "interruption", "f1", "value", "tasks"])
def test_a_fault_names_its_task_whatever_the_task_is_called(name: str) -> None:
    assert f"tasks.{name}.trials:" in faults_of(minimal(tasks={name: {"trials": 0}}))


@pytest.mark.parametrize("names", [["error"], ["row"], ["crack", "crack_probability"]])
def test_a_task_named_like_a_column_of_the_predictions_is_refused(names: list[str]) -> None:
    assert f"tasks.{names[-1]}: is the name of another column" in faults_of(minimal(tasks={name: {} for name in names}))


def test_a_recipe_needs_a_task() -> None:
    assert "tasks:" in faults_of(minimal(tasks={}))


def test_two_tasks_of_one_name_are_an_error_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("tasks:\n  crack: {}\n  crack: {}\n")
    with pytest.raises(BadInput, match=r"line 3.*'crack' is here twice"):
        load(file)


@pytest.mark.parametrize("text", ["a: [1", "just words", "- a\n- b", "!!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_recipe_is_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"recipe\.yaml"):
        load(file)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(BadInput, match=r"nowhere.yaml: No such file"):
        load("nowhere.yaml")


def test_overrides_reach_any_depth_and_are_yaml(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(minimal()))
    recipe = load(file, ["search.max_epochs=7", "tasks.crack.space.lr={loguniform: [1e-5, 1e-3]}", "data.group=null"])
    assert recipe.search.max_epochs == 7
    assert recipe.tasks["crack"].varied()["lr"].bounds == (1e-5, 1e-3)


def test_an_override_of_one_task_leaves_those_alone_that_share_its_anchor(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: a\ndata: {labels: a.csv, images: .}\ntasks:\n  a: &a {default: {lr: 0.1}}\n  b: *a\n")
    recipe = load(file, ["tasks.a.default.lr=0.2"])
    assert (recipe.tasks["a"].default.lr, recipe.tasks["b"].default.lr) == (0.2, 0.1)


@pytest.mark.parametrize("override", ["search.max_epochs", "name.first=1", "=3", "search.seed={"])
def test_a_malformed_override_is_told(override: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(minimal()))
    with pytest.raises(BadInput, match="--set"):
        load(file, [override])


def test_more_trials_than_the_recipe_says_however_often_it_is_said() -> None:
    recipe = parse(minimal(tasks={"crack": {"trials": 5}, "inactive": {"trials": 3}}))
    more = extended(recipe, ["crack=+10"])
    assert [task.trials for task in more.tasks.values()] == [15, 3]
    assert extended(recipe, ["crack=+10"]) == more


def test_what_cannot_be_extended_is_told_all_at_once() -> None:
    recipe = parse(minimal(tasks={"crack": {"trials": 5}}))
    with pytest.raises(BadInput) as caught:
        extended(recipe, ["crack=10", "crak=+1"])
    assert "--extend crack=10: is not of the form TASK=+N" in str(caught.value)
    assert "--extend crak=+1: no such task\n    -> tasks: crack" in str(caught.value)


def test_what_is_dumped_reads_back_the_same() -> None:
    task = {
        "default": {"lr": 1e-4},
        "space": {"lr": {"loguniform": [1e-5, 1e-3]}, "schedule": {"choice": ["cosine", {1: 1e-3, 6: 1e-4}]}},
        "threshold": {"recall": 0.9},
    }
    recipe = parse(minimal(tasks={"crack": task}))
    assert parse(yaml.safe_load(yaml.safe_dump(recipe.dump()))) == recipe


def test_resolved_paths_are_absolute_and_uris_stay() -> None:
    recipe = parse(minimal(storage="s3://bucket/runs")).resolved()
    assert Path(recipe.data.labels).is_absolute()
    assert recipe.storage == "s3://bucket/runs"
    assert recipe.relative_fields() == []


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_recipe_we_ship_is_valid(file: Path) -> None:
    load(file)


def test_the_reference_recipe_shows_every_field() -> None:
    raw = yaml.safe_load((RECIPES / "reference.yaml").read_text())
    assert missing_fields(Recipe, raw) == []
    assert missing_fields(Config, raw["tasks"]["crack"]["default"]) == []


def test_the_reference_recipe_shows_the_defaults() -> None:
    shown = load(RECIPES / "reference.yaml")
    bare = parse(
        {
            "name": "reference",
            "data": {"labels": "data/data.csv", "images": "data"},
            "tasks": {
                "crack": {"space": yaml.safe_load((RECIPES / "reference.yaml").read_text())["tasks"]["crack"]["space"]}
            },
        }
    )
    assert shown == bare


def missing_fields(model: type[BaseModel], raw: dict[str, Any], path: str = "") -> list[str]:
    """Fields of a model, and of the models in it, that a mapping does not have."""
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


def test_a_config_of_an_older_run_is_read_if_the_fields_that_are_gone_were_off() -> None:
    assert Config.model_validate(Config().model_dump() | {"dropout": 0.0, "focal_gamma": 0}) == Config()
    with pytest.raises(ValidationError, match="dropout"):
        Config.model_validate({"dropout": 0.1})
