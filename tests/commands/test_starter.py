from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from upath import UPath

from ovr_ray.commands.starter import starter_recipe
from ovr_ray.errors import BadInput
from ovr_ray.images import read_labels
from ovr_ray.recipe import Recipe, parse
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


def test_label_columns_of_the_same_name_are_told(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("f;wet;wet\na.png;1;0\n")
    with pytest.raises(BadInput, match="has columns of the same name: 'wet'"):
        starter_recipe(str(tmp_path / "labels.csv"))


def started(folder: Path, header: list[str], separator: str = ";", file: str = "labels.csv") -> Recipe:
    """Write 40 images and a label file with 0/1 in every column but the first; return its recipe, which must fit."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [separator.join(header)]
    for i in range(40):
        (folder / f"{i}.png").touch()
        lines.append(separator.join([f"{i}.png", *(str((i + column) % 2) for column in range(len(header) - 1))]))
    (folder / file).write_text("\n".join(lines))
    recipe = parse(yaml.safe_load(starter_recipe(str(folder / file))))
    table = read_labels(recipe.data, recipe.tasks)
    assert len(table.files) == 40
    assert (table.labels.sum() == 20).all()
    return recipe


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (["裂纹", "断栅"], ["裂纹", "断栅"]),
        (["has crack?", "has crack!"], ["has-crack", "has-crack-2"]),
        (["error", "part", "row"], ["error-2", "part-2", "row-2"]),
        (["_x", "__x", "-"], ["x", "x-2", "label"]),
        (["a", "a_probability"], ["a", "a_probability-2"]),
        (["0", "1", "no", "null", "~"], ["0", "1", "no", "null", "label"]),
        (["x" * 300, "x" * 301], ["x" * 150, "x" * 36 + "-2"]),
        (['"a: b #"', "{c}", "📷"], ["a--b", "c", "label"]),
        (["a", "", ""], ["a"]),
    ],
)
def test_a_recipe_fits_its_table_whatever_the_columns_are_called(
    header: list[str], names: list[str], tmp_path: Path
) -> None:
    assert list(started(tmp_path, ["file", *header]).tasks) == names


@pytest.mark.parametrize("folder", ["📷 cells", "~", "cells.v2", "a: b #c", "_images", "größe"])
def test_a_folder_may_have_any_name(folder: str, tmp_path: Path) -> None:
    assert started(tmp_path / folder, ["file", "crack"]).data.images == str(tmp_path / folder)


@pytest.mark.parametrize("separator", [";", ",", "\t", "|", ":", " ", "#"])
def test_the_separator_is_found_though_the_header_has_others_too(separator: str, tmp_path: Path) -> None:
    header = ["file", *("a,b;c".translate(str.maketrans(separator, "_")), "d")]
    assert started(tmp_path, header, separator).data.separator == separator


def test_a_column_of_names_without_a_suffix_is_found_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    (tmp_path / "labels.csv").write_text("id,scan,wet\nx,a,1\ny,b,0\n")
    assert parse(yaml.safe_load(starter_recipe(str(tmp_path / "labels.csv")))).data.filename == "scan"


@pytest.mark.parametrize("cells", [["1.0", "0.0", ""], ["1\xa0", " 0", ""], ["+1", "0", ""]])
def test_a_label_is_found_however_its_numbers_are_written(cells: list[str], tmp_path: Path) -> None:
    rows = [f"{i}.png;{cell}" for i, cell in enumerate(cells)]
    (tmp_path / "labels.csv").write_text("\n".join(["file;wet", *rows]))
    text = starter_recipe(str(tmp_path / "labels.csv"))
    assert list(parse(yaml.safe_load(text)).tasks) == ["wet"]
    assert "# 1 of 2 images (50.0%) are positive, 1 not known" in text


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_labels_and_images_may_be_uris(kind: str, tmp_path: Path) -> None:
    folder = UPath(f"{kind}://{tmp_path}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text("file;wet\n" + "".join(f"{i}.png;{i % 2}\n" for i in range(20)))
    for i in range(20):
        (folder / f"{i}.png").write_bytes(b"")
    recipe = parse(yaml.safe_load(starter_recipe(str(folder / "labels.csv"))))
    assert recipe.data.images == str(folder)
    assert len(read_labels(recipe.data, recipe.tasks).files) == 20


def test_parquet_booleans_are_labels(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a.png", "b.png"], "wet": [True, False]})
    table.to_parquet(tmp_path / "labels.parquet")
    assert list(parse(yaml.safe_load(starter_recipe(str(tmp_path / "labels.parquet")))).tasks) == ["wet"]


@pytest.mark.parametrize("name", ["images/a.png", "a"])
def test_a_file_without_a_header_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    (tmp_path / "labels.csv").write_text(f"{name};1;0\nb;0;1\nb;1;0\n")
    with pytest.raises(BadInput) as caught:
        starter_recipe(str(tmp_path / "labels.csv"))
    assert f"line 1: names an image ({name!r}), not the columns\n    -> put a line" in str(caught.value)
