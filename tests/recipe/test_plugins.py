"""Backbones and trackers of installed packages: the example of docs/extending.md, installed and used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from ovr_ray.errors import BadInput
from ovr_ray.recipe import parse, plugins
from ovr_ray.runs import RunFolder
from tests.support import PATIENCE, plain_recipe

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"


def block(language: str) -> str:
    """Return the code block of the example package in this language that is the longest."""
    return max(re.findall(rf"^```{language}\n(.*?)^```", EXTENDING.read_text("utf-8"), re.M | re.S), key=len)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the package of the documentation into a folder that Python and its subprocesses search."""
    project = tomllib.loads(block("toml"))["project"]
    wheel = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl"
    info = f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
    groups = project["entry-points"].items()
    points = "\n".join(f"[{g}]\n" + "\n".join(f"{n} = {v}" for n, v in names.items()) for g, names in groups)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("ovr_tiny.py", block("python"))
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", points)
        archive.writestr(f"{info}/RECORD", "")
    folder = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(folder), str(wheel)], check=True, timeout=PATIENCE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.syspath_prepend(folder)
    return folder


def with_plugin(cells: Path, storage: Path) -> dict[str, object]:
    recipe = plain_recipe(cells, storage, search={"max_epochs": 2, "trackers": ["lines"]})
    default = {"backbone": "tiny", "weights": "DEFAULT", "lr": 1e-2, "batch_size": 16}
    recipe["tasks"] = {"crack": {"trials": 1, "default": default}}
    return recipe


def test_a_recipe_names_what_an_installed_package_adds(installed: Path, cells: Path, tmp_path: Path) -> None:
    assert plugins.names(plugins.BACKBONES) == ["tiny"]
    recipe = parse(with_plugin(cells, tmp_path))
    assert recipe.search.trackers == ("lines",)


def test_without_the_package_its_tracker_is_refused(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"search.trackers.*no such tracker; installed: mlflow, wandb, not 'lines'"):
        parse(with_plugin(cells, tmp_path))


def test_a_package_that_cannot_be_imported_is_named(installed: Path) -> None:
    (installed / "ovr_tiny.py").write_text("import a_package_that_is_not_there\n")
    sys.modules.pop("ovr_tiny", None)
    with pytest.raises(BadInput, match=r"package 'ovr-tiny': entry point .*a_package_that_is_not_there"):
        plugins.load(plugins.BACKBONES, "tiny")


@pytest.mark.slow
def test_a_worker_trains_with_the_package_and_its_joint_model_is_combined(
    installed: Path, cells: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(with_plugin(cells, tmp_path)))
    for verb, given in (("tune", tmp_path / "recipe.yaml"), ("combine", tmp_path / "tiny")):
        command = [sys.executable, "-m", "ovr_ray.commands.cli", verb, str(given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder.open(tmp_path / "tiny")
    lines = (run.path / "lines.txt").read_text().split()
    epochs = run.trial("crack", 0).epochs()
    assert lines[1::3] == ["1", "2"]
    assert [float(loss) for loss in lines[2::3]] == epochs.val_loss.tolist()
    assert run.winners()["crack"].config["backbone"] == "tiny"
