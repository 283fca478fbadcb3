"""Values that YAML 1.1 reads as something else than was meant, and mistakes in how a space is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovr_ray.errors import BadInput
from ovr_ray.recipe import Recipe, dumped, load
from ovr_ray.recipe.loader import read_value

RECIPE = """\
name: cells
data: {labels: /labels.csv, images: /images}
tasks:
  crack: {trials: 3, space: {lr: {loguniform: [1e-4, 1e-2]}}}
  crack.v2: {trials: 3, threshold: 1e-1}
"""


def loaded(tmp_path: Path, *overrides: str, old: str = "", new: str = "") -> Recipe:
    assert old in RECIPE
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(old, new))
    return load(tmp_path / "recipe.yaml", overrides)


def test_a_number_without_a_dot_may_have_an_exponent(tmp_path: Path) -> None:
    recipe = loaded(tmp_path)
    assert recipe.tasks["crack.v2"].threshold == 0.1
    assert recipe.tasks["crack"].varied()["lr"].bounds == (1e-4, 1e-2)  # type: ignore[union-attr]


def test_a_task_with_a_dot_in_its_name_can_be_overridden(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, "tasks.crack.v2.trials=7", "tasks.crack.trials=5", "tasks.crack.v2.threshold=0.3")
    assert (recipe.tasks["crack"].trials, recipe.tasks["crack.v2"].trials) == (5, 7)
    assert recipe.tasks["crack.v2"].threshold == 0.3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials: 3, space", "trials: yes, space", r"tasks.crack.trials: yes, no, on.*not True"),
        ("{loguniform: [1e-4, 1e-2]}", "on", r"tasks.crack.space.lr: yes, no, on.*not True"),
        ("[1e-4, 1e-2]", "[no, yes]", r"tasks.crack.space.lr.loguniform: yes, no, on"),
        ("space: {lr", "default: {schedule: {1: on}}, space: {lr", r"tasks.crack.default.schedule.*: yes, no, on"),
        ("trials: 3, space", "trials: 010, space", r"line 4, column 19: 010 is read as 8; write 8, or '010' in quotes"),
        ("trials: 3, space", "trials: 0x1F, space", r"0x1F is read as 31"),
        ("trials: 3, space", "trials: 1:30, space", r"1:30 is read as 90"),
        ("{loguniform: [1e-4, 1e-2]}", ".inf", r"tasks.crack.space.lr: should be a finite number"),
        ("[1e-4, 1e-2]", "[1e-4, .inf]", r"tasks.crack.space.lr.loguniform.1: should be a finite number"),
        ("{loguniform: [1e-4, 1e-2]}", "[1e-4, 1e-2]", r"space.lr: .*\n.*write \{choice: \[0.0001, 0.01\]\}"),
        ("{loguniform", "{log_uniform", r"space.lr: .*\n.*did you mean 'loguniform'\?"),
        ("{loguniform", "{between", r"space.lr: .*\n.*domains are choice, uniform, loguniform, randint"),
        ("  crack: ", "  no: ", r"line 4, column 3: the name 'no' is read as true or false; write it in quotes"),
        (
            "/images}",
            "{{ IMAGES }}}",
            r"line 2, column .*: braces within braces: is a \{\{ template \}\} not filled in",
        ),
        ("name: cells", "name: 2024", r"name: should be a valid string, not 2024\n.*name: '2024'"),
        ("name: cells", "name: 2024-01-15", r"name: should be a valid string\n.*name: '2024-01-15'"),
        ("name: cells", "name: [", r"line 3, column 1: not valid YAML"),
    ],
)
def test_what_is_meant_otherwise_is_refused_with_its_place_and_the_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        loaded(tmp_path, old=old, new=new)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=2024_01_15", r"--set name=2024_01_15: 2024_01_15 is read as 20240115"),
        ("tasks.crack.trials=on", r"tasks.crack.trials: yes, no, on"),
        ("name={{ NAME }}", r"--set name=\{\{ NAME \}\}: braces within braces"),
        ("name=[", r"'\[' is not valid YAML"),
        ("name.first=1", r"'name' is a value, not a section"),
    ],
)
def test_an_override_is_refused_in_the_same_words(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        loaded(tmp_path, override)


@pytest.mark.parametrize(
    "value",
    [
        "2024-13-45",
        "2024-01-15T25:00:00",
        "!!int abc",
        "!!float x",
        "!!bool x",
        '!!int ""',
        "!!timestamp x",
        "9" * 5000,
    ],
)
def test_what_only_looks_like_a_date_or_a_number_is_told_with_its_place(value: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"tasks: {{}}\nname: {value}\n")
    with pytest.raises(BadInput, match=r"recipe\.yaml, line 2, column 7: .* cannot be read .*write it in quotes"):
        load(tmp_path / "recipe.yaml")


def test_an_anchor_that_contains_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: &x [*x]\n")
    with pytest.raises(BadInput, match="has an anchor"):
        load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("text", ["1e3", "no", "010", "2024-01-15", "1:30", "a: b", "裂纹", "~", "1"])
def test_text_that_is_written_is_read_as_the_same_text(text: str, tmp_path: Path) -> None:
    assert read_value(dumped({text: text})) == {text: text}
