"""Read a recipe from YAML; report every fault with its path in the file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe.config import Section
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
    raw = _read_yaml(Path(path))
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
        if not more.isdecimal():
            faults.append(Fault(f"--extend {extension}", "is not of the form TASK=+N"))
        elif name not in tasks:
            faults.append(Fault(f"--extend {extension}", "no such task", f"tasks: {', '.join(tasks)}"))
        else:
            tasks[name] = tasks[name].model_copy(update={"trials": tasks[name].trials + int(more)})
    if faults:
        raise BadInput(faults)
    return recipe.model_copy(update={"tasks": tasks})


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key that is given twice; PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value!r} is here twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise BadInput(
            Fault(str(path), error.strerror or str(error), "give the path of a recipe, a YAML file")
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise BadInput(Fault(where, f"not valid YAML: {getattr(error, 'problem', None) or error}")) from None
    if not isinstance(raw, dict):
        raise BadInput(Fault(str(path), "is not a recipe", f"every field: {REFERENCE}"))
    return _unshared(raw)


def _unshared(raw: Any) -> Any:
    """Return a copy in which YAML anchors share nothing: an override of one task must not change others."""
    if isinstance(raw, dict):
        return {key: _unshared(value) for key, value in raw.items()}
    return [_unshared(value) for value in raw] if isinstance(raw, list) else raw


def _apply(raw: dict[str, Any], override: str) -> Fault | None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        return Fault(f"--set {override}", "is not of the form key.path=value", "for example --set search.max_epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return Fault(f"--set {override}", f"{text!r} is not valid YAML")
    *parents, last = path.split(".")
    for key in parents:
        if raw.get(key) is None:
            raw[key] = {}
        raw = raw[key]
        if not isinstance(raw, dict):
            return Fault(f"--set {override}", f"{key!r} is a value, not a section")
    raw[last] = value
    return None


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
        close = difflib.get_close_matches(path.rpartition(".")[2], _field_names(), 1)
        return Fault(where, "no such field", f"did you mean {close[0]!r}?" if close else f"every field: {REFERENCE}")
    if error["type"] == "missing":
        return Fault(where, "is required and missing")
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    plain = isinstance(error["input"], str | int | float | bool | None)
    return Fault(where, f"{message}, not {error['input']!r}" if plain and error["type"] != "recipe" else message)
