from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ovr_ray.recipe import (
    Augment,
    Choice,
    Config,
    LogUniform,
    RandInt,
    Uniform,
    absolute,
    is_anchored,
    is_weights_file,
)


def test_a_config_of_an_older_run_is_read_if_the_fields_that_are_gone_were_off() -> None:
    assert Config.model_validate(Config().model_dump() | {"dropout": 0.0, "focal_gamma": 0}) == Config()
    with pytest.raises(ValidationError, match="dropout"):
        Config.model_validate({"dropout": 0.1})


def test_a_config_decides_its_augmentation_where_it_says_something() -> None:
    general = Augment(rotation=10, crop=0.2)
    assert Config().augment(general) == general
    assert Config(rotation=0, shift=0.1).augment(general) == Augment(rotation=0, shift=0.1, crop=0.2)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Choice[str](choice=["a", "b"]), "b", "c"),
        (Uniform[float](uniform=(0.1, 0.2)), 0.2, 0.21),
        (LogUniform[float](loguniform=(1e-5, 1e-3)), 1e-5, 1e-6),
        (RandInt[int](randint=(1, 3)), 3, 4),
        (RandInt[int](randint=(1, 3)), 2, 2.5),
        (Uniform[float](uniform=(0.1, 0.2)), 0.15, "0.15"),
    ],
)
def test_a_domain_contains_its_values_and_both_ends(domain: Any, inside: Any, outside: Any) -> None:
    assert inside in domain
    assert outside not in domain


def test_a_staged_schedule_begins_with_epoch_one() -> None:
    assert Config(schedule={1: 1e-3, 6: 1e-4}).schedule == {1: 1e-3, 6: 1e-4}
    with pytest.raises(ValidationError, match="needs a rate from epoch 1 on"):
        Config(schedule={2: 1e-3})


def test_weights_are_a_file_if_they_look_like_a_path_which_is_then_absolute() -> None:
    assert [is_weights_file(w) for w in ("DEFAULT", "IMAGENET1K_V1", "w.pth", "a/b")] == [False, False, True, True]
    assert Config(weights="DEFAULT").weights == "DEFAULT"
    assert Config(weights="w.pth").weights == str(Path.cwd() / "w.pth")


def test_paths_become_absolute_and_uris_stay() -> None:
    assert absolute("a/../b") == str(Path.cwd() / "b")
    assert absolute("~/a") == str(Path.home() / "a")
    assert absolute("s3://bucket/a") == "s3://bucket/a"
    assert [is_anchored(path) for path in ("a", "/a", "~/a", "s3://bucket/a")] == [False, True, True, True]
