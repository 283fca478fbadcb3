from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from ovr_ray.commands.starter import starter_recipe
from ovr_ray.errors import BadInput
from ovr_ray.recipe import parse
from tests.support import run_cli


def test_a_starter_recipe_passes_check(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = pd.read_csv(cells / "data.csv", sep=";").rename(columns={"crack": "has crack?"})
    labels.insert(0, "id", range(len(labels)))
    labels.to_csv("labels.csv", sep=",", index=False)
    done = run_cli("init", "labels.csv", "--images", cells)
    assert (done.exit_code, done.stdout) == (0, "recipe.yaml: look it through, then: ovr-ray check recipe.yaml\n")
    assert "# 32 of 80 images (40.0%) are positive" in Path("recipe.yaml").read_text()
    no_download = [f"--set=tasks.{task}.space.weights=null" for task in ("has-crack", "inactive")]
    checked = run_cli("check", "recipe.yaml", *no_download)
    assert checked.exit_code == 0, checked.stderr


def test_init_overwrites_no_file(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    done = run_cli("init", cells / "data.csv", "--output", tmp_path / "mine.yaml")
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_init_names_everything_that_it_did_not_find(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a;b\n1;yes\n2;no\n")
    done = run_cli("init", tmp_path / "labels.csv", "--output", tmp_path / "recipe.yaml")
    assert done.exit_code == 2
    assert "no column names image files" in done.stderr
    assert "no column holds 0 and 1" in done.stderr
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("separator", [";", ",", "\t", "|"])
def test_the_separator_and_the_columns_are_found(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    rows = [["n", "scan", "wet"], ["1", "a.png", "1"], ["2", "b.jpg", "0"], ["3", "c.tif", ""]]
    file.write_text("\n".join(separator.join(row) for row in rows))
    text = starter_recipe(str(file))
    recipe = parse(yaml.safe_load(text))
    assert recipe.data.separator == separator
    assert recipe.data.filename == "scan"
    assert recipe.data.images == str(tmp_path)
    assert {name: task.column for name, task in recipe.tasks.items()} == {"wet": "wet"}
    assert "# 1 of 2 images (50.0%) are positive, 1 not known" in text


def test_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("f;wet;wet\na.png;1;0\n")
    with pytest.raises(BadInput, match="has columns of the same name: 'wet'"):
        starter_recipe(str(tmp_path / "labels.csv"))
