from __future__ import annotations

import re
from pathlib import Path

import pytest

from ovr_ray.errors import BadInput
from ovr_ray.recipe import collides, parse, plain
from ovr_ray.recipe.names import LONGEST

NAMES = ["crack", "crack.v2", "裂纹", "ひび割れ", "größe", "gro\u0308ße", "दरार", "0", "a-b_c.", "x" * LONGEST]
TEXTS = [*NAMES, "has crack?", "_hidden", "-dash", ".dot", "a/b", "../x", "📷 cells", " x ", "x" * 500, "裂" * 200]


def named(name: str) -> None:
    parse({"name": name, "data": {"labels": "a.csv", "images": "a"}, "tasks": {name: {}}})


@pytest.mark.parametrize("name", NAMES)
def test_letters_and_digits_of_every_script_make_a_name(name: str) -> None:
    named(name)


@pytest.mark.parametrize(
    ("name", "close"),
    [("has crack?", "has-crack"), ("_x", "x"), ("../x", "x"), ("a/b", "a-b"), ("-x", "x"), ("x\n", "x"), ("📷", "")],
)
def test_another_text_is_refused_and_a_name_like_it_suggested(name: str, close: str) -> None:
    with pytest.raises(BadInput) as caught:
        named(name)
    example = f", such as {close!r}" if close else ""
    assert f"the first a letter or a digit{example}, not {name!r}" in str(caught.value)
    assert len(caught.value.faults) == 2  # the run and the task


def test_a_name_that_no_file_could_have_is_refused() -> None:
    with pytest.raises(BadInput, match=f"should have at most {LONGEST} bytes, because files are named after it"):
        named("裂" * 51)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_made_plain_is_a_name_and_stays_as_it_is(text: str, tmp_path: Path) -> None:
    name = plain(text)
    named(name)
    assert plain(name) == name
    (tmp_path / f".{name}-fold-12345.csv.{'0' * 32}.partial").touch()


def test_a_task_collides_with_columns_of_the_predictions() -> None:
    assert collides("error", [])
    assert collides("a", ["a"])
    assert collides("a_probability", ["a"])
    assert collides("a", ["a_probability"])
    assert not collides("a", ["b", "b_probability"])


@pytest.mark.parametrize("name", ["part", "crack_probability"])
def test_a_recipe_with_such_a_task_is_refused(name: str) -> None:
    tasks: dict[str, dict[str, object]] = {"crack": {}, name: {}}
    with pytest.raises(BadInput, match=re.escape(f"tasks.{name}: is the name of another column of the predictions")):
        parse({"name": "x", "data": {"labels": "a.csv", "images": "a"}, "tasks": tasks})
