"""The options that recipes and the command line share: each is written once, in ``ovr_ray/choices.py``."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel
from typer.main import get_command

from ovr_ray import choices
from ovr_ray.commands.cli import app
from ovr_ray.recipe import Config, Data, Search


@pytest.mark.parametrize(
    ("section", "field", "options"),
    [
        (Config, "optimizer", choices.Optimizer),
        (Config, "precision", choices.Precision),
        (Data, "color", choices.Color),
        (Data, "on_bad_image", choices.OnBadImage),
        (Search, "metric", choices.Metric),
        (Search, "searcher", choices.Searcher),
        (Search, "scheduler", choices.Scheduler),
    ],
)
def test_a_recipe_takes_the_shared_options(section: type[BaseModel], field: str, options: Any) -> None:
    assert get_args(section.model_fields[field].annotation) == get_args(options) != ()


@pytest.mark.parametrize(
    ("verb", "option", "options"),
    [
        ("combine", "--calibrate", get_args(choices.Calibration)),
        ("combine", "--from", get_args(choices.Source)),
        ("combine", "--format", ("torchscript", *get_args(choices.ExportFormat))),
        ("predict", "--format", get_args(choices.TableFormat)),
    ],
)
def test_the_command_line_offers_the_shared_options(verb: str, option: str, options: tuple[str, ...]) -> None:
    command: Any = get_command(app)
    (parameter,) = (given for given in command.commands[verb].params if option in given.opts)
    assert tuple(parameter.type.choices) == options


def test_the_command_line_refits_with_the_shared_numbers() -> None:
    command: Any = get_command(app)
    parameters = {parameter.name: parameter for parameter in command.commands["refit"].params}
    assert parameters["folds"].default == choices.FOLDS
    assert parameters["image_size"].type.min == choices.LEAST_IMAGE_SIZE
