from __future__ import annotations

import inspect
import pkgutil
import typing
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import ovr_ray
from ovr_ray.commands import verbs
from ovr_ray.commands.cli import app
from ovr_ray.recipe import Recipe, parse
from ovr_ray.results import SavedModel
from ovr_ray.runs import RunFolder
from tests.support import plain_recipe

NAMES = sorted(set(ovr_ray.__all__) - {"__version__"})

IMPERATIVES = ("Check", "Choose", "Decode", "Predict", "Return", "Score", "Search", "Train", "Tune", "Write")
"""First words of the verbs' docstrings."""

ACCEPTED = {
    "recipe": {Recipe, str, Path},
    "run": {RunFolder, str, Path},
    "model": {SavedModel, RunFolder, str, Path},
}
"""Parameter of a verb -> what it may be given as."""


def test_every_command_is_a_function_and_one_verb_is_a_function_only() -> None:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands | {"predict_parts"} == set(NAMES)


def test_every_function_of_the_verbs_is_exported() -> None:
    functions = inspect.getmembers(verbs, inspect.isfunction)
    own = {name for name, function in functions if function.__module__ == verbs.__name__}
    assert {name for name in own if not name.startswith("_")} == set(NAMES)


def test_no_module_of_the_package_hides_a_verb() -> None:
    for module in pkgutil.walk_packages(ovr_ray.__path__, "ovr_ray."):
        import_module(module.name)
    for name in NAMES:
        assert getattr(ovr_ray, name) is getattr(verbs, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_verb_says_in_the_imperative_what_it_does(name: str) -> None:
    documentation = inspect.getdoc(getattr(ovr_ray, name)) or ""
    assert documentation.split()[0].rstrip(",") in IMPERATIVES
    assert documentation.splitlines()[0].rstrip(":").endswith((".", "``report``", "``"))


@pytest.mark.parametrize("name", NAMES)
def test_a_verb_takes_an_object_or_its_path(name: str) -> None:
    hints = typing.get_type_hints(getattr(ovr_ray, name))
    for parameter, kinds in ACCEPTED.items():
        if parameter in hints:
            assert set(typing.get_args(hints[parameter])) == kinds


def test_a_recipe_may_be_an_object_or_a_path(cells: Path, tmp_path: Path) -> None:
    plain = plain_recipe(cells, tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain))
    fingerprints = {ovr_ray.check(recipe).fingerprint() for recipe in (parse(plain), file, str(file))}
    assert len(fingerprints) == 1


def test_a_run_may_be_an_object_or_a_path(finished: RunFolder) -> None:
    tables = [ovr_ray.status(run) for run in (finished, Path(str(finished.path)), str(finished.path))]
    assert all(table.equals(tables[0]) for table in tables)
    assert len(tables[0]) == 2


@pytest.mark.usefixtures("without_ray")
def test_a_model_may_be_an_object_its_file_or_its_run(finished: RunFolder, cells: Path, tmp_path: Path) -> None:
    saved = SavedModel(str(finished.path))
    output = str(tmp_path / "metrics.json")
    picture = [str(cells / "images/cell00.png")]
    tables = [ovr_ray.predict(model, picture) for model in (saved, finished, str(saved.file), Path(str(saved.file)))]
    assert all(table.equals(tables[0]) for table in tables)
    assert ovr_ray.evaluate(saved, output=output)["model_digest"] == saved.digest


def test_init_returns_the_recipe_as_yaml(cells: Path) -> None:
    recipe = parse(yaml.safe_load(ovr_ray.init(str(cells / "data.csv"))))
    assert list(recipe.tasks) == ["crack", "inactive"]
    assert recipe.data.images == str(cells)


def test_a_run_returns_the_metrics_and_the_path_of_the_report(finished: RunFolder) -> None:
    assert finished.report.exists()
    assert {file.name for file in finished.results()} == {"joint.pt", "metrics.json", "winners.json", "report.html"}


def test_another_name_is_no_attribute_of_the_package() -> None:
    with pytest.raises(AttributeError, match="module 'ovr_ray' has no attribute 'tunee'"):
        _ = ovr_ray.tunee
