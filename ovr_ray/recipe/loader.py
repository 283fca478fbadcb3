"""YAML without the traps of YAML 1.1, in which ``010`` is 8, ``1e-1`` is text, and ``no`` is false."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from ovr_ray.errors import BadInput, Fault


class Loader(yaml.SafeLoader):
    """A safe loader that refuses what would be read as something else than was meant."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; refuse with its place what looks like a date or a number and is none."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, ValueError) as error:
            raise _refused(node, f"{reprlib.repr(node.value)} cannot be read ({error}); write it in quotes") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are plain, and given once."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "braces within braces: is a {{ template }} not filled in?")
            if key.tag == "tag:yaml.org,2002:bool":
                raise _refused(key, f"the name {key.value!r} is read as true or false; write it in quotes")
            if key.value in seen:
                raise _refused(key, f"{key.value!r} is here twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number; octal, hexadecimal and other notations are refused."""
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", node.value):
            value = super().construct_yaml_int(node)
            raise _refused(node, f"{node.value} is read as {value}; write {value}, or '{node.value}' in quotes")
        return int(node.value)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes whatever text our loader would read as a number."""


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
for _kind in (Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def read_mapping(path: Path, every_field: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; what anchors share is copied.

    Parameters
    ----------
    path : Path
    every_field : str
        File that shows every field, for error messages.

    Raises
    ------
    BadInput
        If there is no such file, or it is not valid YAML; names the line and the column.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        remedy = "give the path of a recipe, a YAML file"
        raise BadInput(Fault(str(path), error.strerror or str(error), remedy)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        is_ours = isinstance(error, yaml.constructor.ConstructorError)
        problem = f"{'' if is_ours else 'not valid YAML: '}{getattr(error, 'problem', None) or error}"
        raise BadInput(Fault(where, problem)) from None
    if not isinstance(raw, dict):
        raise BadInput(Fault(str(path), "is not a recipe", f"every field: {every_field}"))
    try:
        return _unshared(raw)
    except RecursionError:
        raise BadInput(Fault(str(path), "has an anchor (&) that contains itself", "write its content out")) from None


def dumped(plain: dict[str, Any]) -> str:
    """Return a mapping as YAML, in which text stays text for our loader, too: ``"1e3"`` is quoted."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_value(text: str) -> Any:
    """Return the value of a text in YAML; raises ValueError that says what is wrong with it."""
    try:
        return yaml.load(text, Loader)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(error.problem) from None
    except yaml.YAMLError:
        raise ValueError(f"{text!r} is not valid YAML") from None


def _refused(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _unshared(raw: Any) -> Any:
    """Return a copy in which YAML anchors share nothing: an override of one task must not change others."""
    if isinstance(raw, dict):
        return {key: _unshared(value) for key, value in raw.items()}
    return [_unshared(value) for value in raw] if isinstance(raw, list) else raw
