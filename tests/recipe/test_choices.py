"""The options that recipes and the command line share: each is written once, in ``ovr_ray/choices.py``."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from ovr_ray import choices
from ovr_ray.recipe import Config, Data, Search
from tests.support import run_cli


@pytest.mark.parametrize(
    ("section", "field", "options"),
    [
        (Config, "optimizer", choices.Optimizer),
        (Config, "precision", choices.Precision),
        (Data, "color", choices.Color),
        (Data, "on_bad_image", choices.OnBadImage),
        (Data, "duplicates", choices.OnDuplicates),
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
    refused = run_cli(verb, "nowhere", option, "wrong").stderr
    assert f"Invalid value for '{option}'" in refused
    assert tuple(re.findall(r"'(\w+)'", refused.partition("is not one of")[2])) == options


def test_the_command_line_refits_with_the_shared_numbers() -> None:
    shown = run_cli("refit", "--help").stdout
    assert f"default: {choices.FOLDS}" in shown
    assert f"x>={choices.LEAST_IMAGE_SIZE}" in shown
    too_small = run_cli("refit", "nowhere", "--image-size", choices.LEAST_IMAGE_SIZE - 1)
    assert "Invalid value for '--image-size'" in too_small.stderr
