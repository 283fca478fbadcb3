from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.recipe import Recipe, parse
from ovr_ray.results import find_images
from tests.support import plain_recipe

ODD_NAMES = (
    "~x.png",
    "~root.png",
    "a::b.png",
    "a#b.png",
    "a?b.png",
    "a%20b.png",
    "{a}.png",
    "a b.png",
    "memory:a.png",
    "☀.png",
)
"""Names that a shell, an address or a format string would take for something else."""


@pytest.fixture(scope="module")
def recipe(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse(plain_recipe(cells, tmp_path_factory.mktemp("storage")))


def made(folder: Path, *names: str) -> list[str]:
    """Make empty files below a folder; return their paths, sorted."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return sorted(str(folder / name) for name in names)


def test_what_cannot_be_found_is_named_all_at_once(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        find_images([str(tmp_path), "nowhere.png"], make_recipe())
    assert f"{tmp_path}: no image in this folder" in str(caught.value)
    assert "nowhere.png: no such file or folder" in str(caught.value)


def test_folders_are_searched_with_their_subfolders(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("b/c/deep.PNG", "a.jpg", "b/notes.txt"):
        (tmp_path / name).touch()
    found = find_images([str(tmp_path)], make_recipe())
    assert found.filename.tolist() == found.path.tolist() == [str(tmp_path / "a.jpg"), str(tmp_path / "b/c/deep.PNG")]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_names_images_below_its_folder_below_another_or_from_the_root(
    suffix: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    names, file = pd.DataFrame({"id": [1, 2], "filename": ["a.png", "/root/b.png"]}), tmp_path / f"names.{suffix}"
    if suffix == "csv":
        names.to_csv(file, sep=";", index=False)
    else:
        names.to_parquet(file)
    beside = find_images([str(file)], make_recipe())
    assert beside.filename.tolist() == ["a.png", "/root/b.png"]
    assert beside.path.tolist() == [str(tmp_path / "a.png"), "/root/b.png"]
    below = find_images([str(file)], make_recipe(), "s3://bucket/images")
    assert below.path.tolist() == ["s3://bucket/images/a.png", "/root/b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;crack\na.png;1\n", "has no column 'filename'\n    -> its columns: file, crack"),
        ("filename;crack\na.png;1\n;0\n", "1 rows name no file, row 3 for one"),
        ("filename;filename\na.png;b.png\n", "has column 'filename' twice"),
    ],
)
def test_a_table_without_names_is_refused(
    text: str, message: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        find_images([str(tmp_path / "names.csv")], make_recipe())
    assert message in str(caught.value)


def test_links_to_folders_are_followed_and_each_real_folder_is_searched_once(recipe: Recipe, tmp_path: Path) -> None:
    made(tmp_path, "elsewhere/far.png")
    inside = made(tmp_path / "images", "a.png", "deep/b.png")
    (tmp_path / "images/another name of deep").symlink_to(tmp_path / "images/deep")
    (tmp_path / "images/deep/loop").symlink_to(tmp_path / "images")
    (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere")
    found = find_images([str(tmp_path / "images")], recipe)
    assert found.filename.tolist() == [*inside, str(tmp_path / "images/linked/far.png")]


def test_hidden_and_derived_entries_and_what_is_no_file_are_passed_over_and_counted(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = made(tmp_path, "a.png", "x.png/inside.png")
    made(tmp_path, "._a.png", ".hidden.png", ".ipynb_checkpoints/a.png", "__MACOSX/._a.png", "@eaDir/a.png/thumb.jpg")
    made(tmp_path, ".thumbnails/a.png", "sub/.Thumbnails/a.png", "Thumbs.db", "notes.txt")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "self.png").symlink_to("self.png")
    assert find_images([str(tmp_path)], recipe).filename.tolist() == images
    assert capsys.readouterr().err.startswith("passed over in folders: 11 entries (hidden or derived")
    assert find_images([str(tmp_path / "x.png")], recipe).filename.tolist() == images[1:]
    assert capsys.readouterr().err == ""


def test_in_a_bucket_hidden_and_derived_entries_are_passed_over_by_name(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = UPath(f"memory://{tmp_path.name}")
    for name in ("a.png", "sub/b#%20.JPG", "._a.png", "@eaDir/a.png", "@eaDir/b.png", "sub/.thumbnails/b.png", "c.txt"):
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(b"-")
    found = find_images([str(bucket)], recipe)
    assert found.filename.tolist() == found.path.tolist() == [f"{bucket}/a.png", f"{bucket}/sub/b#%20.JPG"]
    assert "3 entries" in capsys.readouterr().err


def test_a_file_that_is_named_is_always_taken(recipe: Recipe, tmp_path: Path) -> None:
    names = made(tmp_path, "._a.png", ".hidden/a.png")
    (tmp_path / "names.csv").write_text("filename\n.hidden/a.png\n")
    found = find_images([*names, str(tmp_path / "names.csv"), str(tmp_path / ".hidden")], recipe)
    assert found.path.tolist() == [*names, names[1], names[1]]


def test_a_folder_of_hidden_images_alone_has_no_image_and_says_how_many_were_passed_over(
    recipe: Recipe, tmp_path: Path
) -> None:
    made(tmp_path, ".a.png", ".b.png")
    with pytest.raises(BadInput, match=r"no image in this folder[\s\S]*2 hidden or derived entries are passed over"):
        find_images([str(tmp_path)], recipe)


def test_odd_names_are_plain_names_below_their_folder(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = made(tmp_path, *ODD_NAMES)
    assert find_images([str(tmp_path)], recipe).path.tolist() == paths
    pd.DataFrame({"filename": ODD_NAMES}).to_csv(tmp_path / "names.csv", sep=";", index=False)
    assert sorted(find_images([str(tmp_path / "names.csv")], recipe).path) == paths
    monkeypatch.chdir(tmp_path)
    found = find_images(ODD_NAMES, recipe)
    assert found.filename.tolist() == list(ODD_NAMES)
    assert sorted(found.path) == paths
    assert sorted(find_images(["."], recipe).filename) == sorted(ODD_NAMES)


def test_a_name_that_is_not_in_utf_8_is_told(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(BadInput, match=r"caf\\udce9\.png': is no name in UTF-8"):
        find_images([str(tmp_path)], recipe)


def test_a_name_with_a_carriage_return_is_told_and_one_of_two_lines_is_taken(recipe: Recipe, tmp_path: Path) -> None:
    _, fine = made(tmp_path, "a\rb.png", "c\nd.png")
    assert find_images([fine], recipe).filename.tolist() == [fine]
    with pytest.raises(BadInput, match=r"a\\rb\.png': has a carriage return"):
        find_images([str(tmp_path)], recipe)


@pytest.mark.parametrize("name", ["names.CSV", "names.csv.gz", "names.tsv"])
def test_a_table_may_be_compressed_or_separated_by_tabs(name: str, recipe: Recipe, tmp_path: Path) -> None:
    table, separator = pd.DataFrame({"id": [1], "filename": ["a.png"]}), "\t" if name.endswith("tsv") else ";"
    table.to_csv(tmp_path / name, sep=separator, index=False)
    assert find_images([str(tmp_path / name)], recipe).path.tolist() == [str(tmp_path / "a.png")]
