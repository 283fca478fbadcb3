"""The order of the rooms: see ``python -m tests.architecture`` and docs/design.md."""

from __future__ import annotations

import re
from pathlib import Path

import ovr_ray
from tests.architecture import FLOORS, PACKAGE, arrows, files, imports, room_of

DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
MOST_LINES = 300


def test_every_room_has_a_floor() -> None:
    assert sorted(room for floor in FLOORS for room in floor) == sorted({room_of(file) for file in files()})


def test_imports_go_downwards_only() -> None:
    floor = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert [f"{upper} -> {lower}" for upper, lower in sorted(arrows()) if floor[upper] <= floor[lower]] == []


def test_the_inner_files_of_a_room_are_its_own() -> None:
    inside = [f"{i.file}: {i.module}" for i in imports() if i.reaches_inside and i.room != "__init__"]
    assert inside == []


def test_other_rooms_import_only_the_names_that_a_room_exports() -> None:
    hidden = []
    for found in imports():
        package = PACKAGE / found.imported / "__init__.py"
        if package.exists() and found.module == f"ovr_ray.{found.imported}" and found.imported != "commands":
            exported = re.findall(r'^    "(\w+)",$|"(\w+)"[,\]]', package.read_text().partition("__all__")[2], re.M)
            if found.name not in {name for pair in exported for name in pair}:
                hidden.append(f"{found.file}: {found.module}.{found.name}")
    assert hidden == []


def test_the_design_document_names_the_files_there_are() -> None:
    tree = DESIGN.read_text(encoding="utf-8").partition("    ovr_ray/\n")[2].partition("\n\n")[0]
    named, room = set(), ""
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if name.endswith("/"):
            room = name if indent == 6 else f"{room.split('/')[0]}/{name}"
        else:
            assert name.endswith(".py"), line
            named.add(name if indent == 6 else room + name)
    assert named == {file for file in files() if not file.endswith("__init__.py") or file == "__init__.py"}


def test_no_file_is_long() -> None:
    lines = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in files()}
    assert {file: count for file, count in lines.items() if count > MOST_LINES} == {}


def test_no_room_hides_a_verb_of_the_python_api() -> None:
    assert not {room_of(file) for file in files()} & {name for name in ovr_ray.__all__ if name != "__version__"}
