"""``ovr-ray check`` on generated recipes and label files that have one fault each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data.synthetic import generate
from ovr_ray.recipe import parse
from tests.support import plain_recipe, run_cli

pytestmark = pytest.mark.slow
CASES = 300
IMAGES = 40

Lines = list[list[str]]
"""The cells of a label file, its header first."""


def leaves(plain: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value in nested mappings, with its path."""
    if isinstance(plain, dict) and plain:
        for key, value in plain.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, plain


def at(plain: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the mapping in which the last key of a path lies."""
    for key in path[:-1]:
        plain = plain[key]
    return plain


def wrong_for(value: Any) -> list[Any]:
    """Return values that no field takes whose value is like this one."""
    nonsense: list[Any] = [{"nonsense": 1}, [[1]], [{"a": "b"}]]
    if isinstance(value, bool) or value is None:
        return nonsense
    if isinstance(value, int | float):
        return [*nonsense, "many", "", True, -1, -0.5, math.inf, math.nan, "1.0.0"]
    return [*nonsense, 5, True]


def wrong_value(rng: np.random.Generator, recipe: dict[str, Any]) -> str:
    every = [(path, value) for path, value in leaves(recipe) if path != ("tasks", "crack", "space")]
    path, value = every[rng.integers(len(every))]
    wrong = wrong_for(value)
    at(recipe, path)[path[-1]] = wrong[rng.integers(len(wrong))]
    return ".".join(path)


def wrong_key(rng: np.random.Generator, recipe: dict[str, Any]) -> str:
    every = [path for path, _ in leaves(recipe) if "tasks" not in path[-2:] and path != ("name",)]
    path = every[rng.integers(len(every))]
    place, letter = rng.integers(len(path[-1])), "abcxyz"[rng.integers(6)]
    typo = path[-1][:place] + letter + path[-1][place:]
    section = at(recipe, path)
    section[typo] = section.pop(path[-1])
    return typo


def lacking_key(rng: np.random.Generator, recipe: dict[str, Any]) -> str:
    path = [("name",), ("data", "labels"), ("data", "images"), ("tasks",), ("data",)][rng.integers(5)]
    at(recipe, path).pop(path[-1])
    return ".".join(path)


def wrong_text(rng: np.random.Generator, text: str) -> tuple[str, str]:
    """Return a recipe's text with a line that is no YAML, or that YAML reads as something else, and its number."""
    lines = [
        "storage: {{ HERE }}",
        "name: tiny",
        "search: {seed: 010}",
        "search: {seed: 1:30}",
        "search: {seed: 0x1F}",
        "tasks: {no: {}}",
        "search: [}",
        "\tsearch: {}",
        "search: *nothing",
        "search: !!python/object:os.system {}",
        "search: {seed: 1} }",
    ]
    line = lines[rng.integers(len(lines))]
    return f"{text}{line}\n", f"line {text.count(chr(10)) + 1}"


def faulty_cell(rng: np.random.Generator, lines: Lines) -> str:
    wrong = ["2", "-1", "yes", "0.5", "1,0", "nan", "True", "１", "inf", "1 0", "0x1", "?"]
    lines[rng.integers(1, len(lines))][1] = wrong[rng.integers(len(wrong))]
    return "column 'crack'"


def faulty_name(rng: np.random.Generator, lines: Lines) -> str:
    row = rng.integers(1, len(lines) - 1)
    name, other = lines[row][0], lines[row + 1][0]
    wrong = ["", " ", f"{name} ", f"{name}.gone", name.upper(), name.replace("/", "\\"), other, f"./{other}"]
    wrong += ["../x.png", "/etc/passwd", name + "\0", "x" * 5000, f"s3://bucket/{name}", "~/x.png", name[:-4]]
    lines[row][0] = wrong[rng.integers(len(wrong))]
    return "column 'filename'"


def faulty_header(rng: np.random.Generator, lines: Lines) -> str:
    column = rng.integers(3)
    name = lines[0][column]
    wrong = [name.upper(), f"{name}s", "", f"{name};{name}", "x" * 5000]
    lines[0][column] = wrong[rng.integers(len(wrong))]
    return f"column {name!r}"


def faulty_class(rng: np.random.Generator, lines: Lines) -> str:
    column, value = rng.integers(1, 3), ["0", "1", ""][rng.integers(3)]
    for line in lines[1:]:
        line[column] = value
    return f"task {lines[0][column]!r}"


RECIPE_FAULTS: list[Callable[[np.random.Generator, dict[str, Any]], str]] = [wrong_value, wrong_key, lacking_key]
TABLE_FAULTS: list[Callable[[np.random.Generator, Lines], str]] = [
    faulty_cell,
    faulty_name,
    faulty_header,
    faulty_class,
]


def faulty_file(rng: np.random.Generator, content: bytes) -> bytes:
    """Return the content of a label file that cannot be read as one."""
    wrong = [
        b"",
        content[: content.index(b"\n") + 1],
        content[content.index(b"\n") + 1 :],
        content.replace(b"crack", "größe".encode("cp1252"), 1),
        content + b"a;b;c;d;e\n",
        content + b'"unclosed;1;1\n',
        bytes(rng.integers(0, 256, 500, dtype=np.uint8)),
        content.replace(b";", b","),
    ]
    return wrong[rng.integers(len(wrong))]


def test_every_fault_is_told_without_a_trace_and_with_the_place_where_it_is(tmp_path: Path) -> None:
    generate(tmp_path / "cells", count=IMAGES, size=32, rates={"crack": 0.4, "inactive": 0.4})
    labels, recipe_file = tmp_path / "cells" / "data.csv", tmp_path / "recipe.yaml"
    whole = labels.read_bytes()
    recipe = parse(plain_recipe(tmp_path / "cells", tmp_path)).dump()
    rng, wrong = np.random.default_rng(0), []
    for _ in range(CASES):
        faulty, lines = copy.deepcopy(recipe), [line.split(";") for line in whole.decode().splitlines()]
        content, kind = whole, rng.integers(4)
        text = yaml.safe_dump(faulty, sort_keys=False)
        if kind == 0:
            place = RECIPE_FAULTS[rng.integers(len(RECIPE_FAULTS))](rng, faulty)
            text = yaml.safe_dump(faulty, sort_keys=False)
        elif kind == 1:
            place = TABLE_FAULTS[rng.integers(len(TABLE_FAULTS))](rng, lines)
            content = "\n".join(";".join(line) for line in lines).encode()
        elif kind == 2:
            text, place = wrong_text(rng, text)
        else:
            content, place = faulty_file(rng, whole), str(labels)
        labels.write_bytes(content)
        recipe_file.write_text(text)
        told = run_cli("check", recipe_file)
        if told.exit_code != 2 or place not in told.stderr or "Traceback" in told.stderr:
            wrong.append(f"{place!r} is not in: {told.exit_code} {told.stderr[:500]}")
    assert not wrong, "\n".join(wrong)
