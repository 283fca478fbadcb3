"""The rooms of the package and the imports between them: ``python -m tests.architecture [PACKAGE_FOLDER]``.

A room is a package, or a module, directly below ``ovr_ray``. An arrow is a pair of rooms of which the first imports the
second, anywhere in its files: within functions and under ``TYPE_CHECKING`` as well, and by names of modules in strings.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

PACKAGE = Path(__file__).parents[1] / "ovr_ray"

FLOORS = (
    ("__init__",),
    ("commands",),
    ("reporting", "refitting"),
    ("search", "results"),
    ("joint", "training", "checks"),
    ("images", "runs"),
    ("model", "cluster"),
    ("recipe", "storage"),
    ("errors", "choices", "ray_quirks", "_version"),
)
"""The rooms from the top floor down. Imports go downwards only."""


@dataclass(frozen=True)
class Import:
    """One import of one room's name by a file of another room."""

    file: str
    room: str
    imported: str
    module: str
    name: str

    @property
    def reaches_inside(self) -> bool:
        """Whether it names an inner file of the other room."""
        return self.module.count(".") > 1


def files(package: Path = PACKAGE) -> list[str]:
    """Return the Python files of the package, relative to it."""
    return sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))


def room_of(file: str) -> str:
    """Return the room of a file, given relative to the package."""
    return file.split("/")[0].removesuffix(".py")


def imports(package: Path = PACKAGE) -> list[Import]:
    """Return every import from one room by another."""
    rooms = {room_of(file) for file in files(package)}
    found = []
    for file in files(package):
        for module, name in _imported(ast.parse((package / file).read_text(encoding="utf-8"))):
            path = f"{module}.{name}".split(".") if module == "ovr_ray" else module.split(".")
            other = path[1] if len(path) > 1 and path[1] in rooms else "__init__"
            if other != room_of(file):
                found.append(Import(file, room_of(file), other, module, name))
    return found


def arrows(package: Path = PACKAGE) -> set[tuple[str, str]]:
    """Return the pairs of rooms of which the first imports the second."""
    return {(found.room, found.imported) for found in imports(package)}


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield module and name of all imports of the package; of a module's name in a string, "" as the name."""
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ovr_ray":
            for alias in node.names:
                yield str(node.module), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ovr_ray":
                    yield alias.name, ""
        elif isinstance(node, ast.Constant) and id(node) not in documented and _is_module(node.value):
            yield node.value, ""


def _is_module(name: object) -> TypeGuard[str]:
    if not (isinstance(name, str) and re.fullmatch(r"ovr_ray(\.[a-z_]+)+", name)):
        return False
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def reachable(found: set[tuple[str, str]]) -> dict[str, set[str]]:
    """Return for every room the rooms that it imports, directly or through others."""
    below = defaultdict(set)
    for upper, lower in found:
        below[upper].add(lower)
    reached: dict[str, set[str]] = {}
    for room in {room for arrow in found for room in arrow}:
        waiting, seen = [room], set[str]()
        while waiting:
            new = below[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[room] = seen
    return reached


def heights(found: set[tuple[str, str]]) -> dict[str, int]:
    """Return the lowest possible floor of every room, counted from 1; arrows of cycles do not count."""
    reached = reachable(found)
    straight = {(upper, lower) for upper, lower in found if upper not in reached[lower]}

    def height(room: str) -> int:
        return 1 + max((height(lower) for upper, lower in straight if upper == room), default=0)

    return {room: height(room) for room in reached}


def main() -> None:
    """Print the rooms by floor, with the rooms that each imports."""
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE
    found = arrows(package)
    floor = heights(found)
    for number in sorted(set(floor.values()), reverse=True):
        for room in sorted(name for name, height in floor.items() if height == number):
            lines = sum(len((package / f).read_text().splitlines()) for f in files(package) if room_of(f) == room)
            print(
                f"{number:2}  {room:12} {lines:5} lines  imports {', '.join(sorted(b for a, b in found if a == room))}"
            )
    inside = sorted({f"{i.file} -> {i.module}" for i in imports(package) if i.reaches_inside})
    reached = reachable(found)
    cycles = [f"{upper} -> {lower}" for upper, lower in sorted(found) if upper in reached[lower]]
    print(f"{len(floor)} rooms, {max(floor.values())} floors, {len(found)} arrows")
    print(f"arrows that are part of a cycle: {', '.join(cycles) or 'none'}")
    print(f"imports of inner files of another room: {', '.join(inside) or 'none'}")


if __name__ == "__main__":
    main()
