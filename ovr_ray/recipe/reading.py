"""Read a recipe from YAML; report every fault with its path in the file."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe.config import DOMAINS, Section
from ovr_ray.recipe.loader import read_mapping, read_value
from ovr_ray.recipe.sections import Recipe

REFERENCE = "jobs/recipes/reference.yaml"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path : str or Path
        A YAML file.
    overrides : sequence of str
        Each ``key.path=value``, the value in YAML: ``search.max_epochs=3``.

    Raises
    ------
    BadInput
        Carries every fault found, each with its path in the file.
    """
    source = str(path)
    raw = read_mapping(Path(path), REFERENCE)
    faults = [fault for override in overrides if (fault := _apply(raw, override))]
    if faults:
        raise BadInput(faults)
    return parse(raw, source)


def parse(raw: dict[str, Any], source: str = "recipe") -> Recipe:
    """Return the recipe of plain YAML types; raises :class:`BadInput` like :func:`load`."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise BadInput([_fault(details, source) for details in error.errors()]) from None


def extended(recipe: Recipe, extensions: Sequence[str]) -> Recipe:
    """Return the recipe with more trials: each extension is of the form ``crack=+10``.

    Raises
    ------
    BadInput
        If an extension is not of that form, or names no task.
    """
    faults, tasks = [], dict(recipe.tasks)
    for extension in extensions:
        name, _, more = extension.partition("=+")
        if not more.isdecimal() or len(more) > 9:
            faults.append(Fault(f"--extend {extension}", "is not of the form TASK=+N"))
        elif name not in tasks:
            faults.append(Fault(f"--extend {extension}", "no such task", f"tasks: {', '.join(tasks)}"))
        else:
            tasks[name] = tasks[name].model_copy(update={"trials": tasks[name].trials + int(more)})
    if faults:
        raise BadInput(faults)
    return recipe.model_copy(update={"tasks": tasks})


def _apply(raw: dict[str, Any], override: str) -> Fault | None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        return Fault(f"--set {override}", "is not of the form key.path=value", "for example --set search.max_epochs=3")
    try:
        value = read_value(text)
    except ValueError as error:
        return Fault(f"--set {override}", str(error))
    *parents, last = _keys(raw, path)
    for key in parents:
        if raw.get(key) is None:
            raw[key] = {}
        raw = raw[key]
        if not isinstance(raw, dict):
            return Fault(f"--set {override}", f"{key!r} is a value, not a section")
    raw[last] = value
    return None


def _keys(raw: Any, path: str) -> list[str]:
    """Split a path at its dots, except for those within a key that exists, such as a task's name."""
    steps = path.split(".")
    for count in range(len(steps), 1, -1):
        key = ".".join(steps[:count])
        if isinstance(raw, dict) and key in raw:
            return [key, *(_keys(raw[key], ".".join(steps[count:])) if steps[count:] else [])]
    inside = raw.get(steps[0]) if isinstance(raw, dict) else None
    return [steps[0], *(_keys(inside, ".".join(steps[1:])) if steps[1:] else [])]


def _field_names(section: Any = Recipe) -> set[str]:
    names = set()
    for name, field in section.model_fields.items():
        names.add(name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                names |= _field_names(kind)
    return names


_BRANCHES = {"value", "random", "number", "f1", "float", "int", "str", "none", "constrained-str"}
"""Names of union branches that pydantic puts into the path of an error; no field has such a name."""


_QUOTED = reprlib.Repr()
_QUOTED.maxstring = 100


def _path(steps: Sequence[str | int]) -> str:
    kept: list[str] = []
    for step in map(str, steps):
        is_task = kept[-1:] == ["tasks"]
        repeated = kept[-1:] == [step]  # a domain's tag and its only field have the same name
        if is_task or not (repeated or step in _BRANCHES or "[" in step):
            kept.append(step)
    return ".".join(kept)


def _fault(error: ErrorDetails, source: str) -> Fault:
    path = _path(error["loc"])
    where = f"{source}: {path}" if path else source
    if error["type"] == "extra_forbidden":
        name = path.rpartition(".")[2]
        close = [field for field in difflib.get_close_matches(name, _field_names(), 1) if field != name]
        return Fault(where, "no such field", f"did you mean {close[0]!r}?" if close else f"every field: {REFERENCE}")
    if error["type"] == "missing":
        return Fault(where, "is required and missing")
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if ".space." in path and isinstance(error["input"], dict) and not set(DOMAINS) & set(error["input"]):
        message = f"no such domain: {', '.join(map(repr, error['input']))}"
    plain = isinstance(error["input"], str | int | float | bool | None)
    problem = f"{message}, not {_QUOTED.repr(error['input'])}" if plain and error["type"] != "recipe" else message
    return Fault(where, problem, _remedy(error, path))


def _remedy(error: ErrorDetails, path: str) -> str:
    """Return what to write instead, where that is known."""
    given = error["input"]
    if error["type"] == "string_type" and given is not None:
        is_as_written = isinstance(given, int | date) and not isinstance(given, bool | datetime)
        example = f": {path.rpartition('.')[2]}: '{given}'" if is_as_written else ""
        return f"if it is a text, write it in quotes{example}"
    if error["type"] == "value_error":
        return ""
    if ".space." in path and isinstance(given, list):
        values = ", ".join(map(str, given))
        return f"to search it, write {{choice: [{values}]}}, or of two ends {{uniform: …}} or {{loguniform: …}}"
    if ".space." in path and isinstance(given, dict):
        names = [close for name in given for close in difflib.get_close_matches(str(name), DOMAINS, 1)]
        return f"did you mean {names[0]!r}?" if names else f"domains are {', '.join(DOMAINS)}"
    return ""
