from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.storage import READERS, listed, location, read_if_there, side_by_side, storage_errors, write_whole


@pytest.fixture(params=["folder", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """Return a folder on disk, and one in an object store."""
    return UPath(tmp_path / "f") if request.param == "folder" else UPath(f"memory://storage-test/{tmp_path.name}")


def test_the_errors_of_storage_can_be_asked_for_while_botocore_is_being_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", ModuleType("botocore.exceptions"))
    assert storage_errors() == (OSError, ImportError, ValueError)


def test_several_may_write_a_file_at_the_same_time_and_it_always_is_one_of_theirs(tmp_path: Path) -> None:
    file = UPath(tmp_path / "file")
    contents = [bytes([writer]) * 1_000_000 for writer in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        for _ in range(5):
            list(pool.map(lambda content: write_whole(file, content), contents))
            assert file.read_bytes() in contents
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_whole(UPath(tmp_path / "taken"), "new")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_every_file_below_a_folder_is_listed_with_its_size(folder: UPath) -> None:
    assert listed(folder) == {}
    for name, content in {"a": "1", "b/c": "22", "b/d/e": "333"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, content)
    assert listed(folder) == {"a": 1, "b/c": 2, "b/d/e": 3}
    assert listed(folder / "b") == {"c": 2, "d/e": 3}


def test_links_that_lead_nowhere_or_to_themselves_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    for name, target in {"broken": "gone", "self": "self"}.items():
        (tmp_path / name).symlink_to(target)
    assert listed(UPath(tmp_path)) == {"file": 1}


def test_an_absent_file_has_no_text(folder: UPath) -> None:
    assert read_if_there(folder / "a") is None
    folder.mkdir(parents=True)
    write_whole(folder / "a", "ä")
    assert read_if_there(folder / "a") == "ä"


def test_items_are_read_at_the_same_time_and_returned_in_their_order() -> None:
    def slow(item: int) -> int:
        time.sleep(0.2 if item == 0 else 0.1)
        return item

    begun = time.monotonic()
    assert side_by_side(slow, range(READERS)) == list(range(READERS))
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("uri", ["zzz://bucket/x", "github://x/y.csv", "a\0b"])
def test_a_protocol_that_nothing_here_opens_is_told(uri: str) -> None:
    with pytest.raises(BadInput, match=r"cannot be opened: .*\n    -> pip install 'ovr-ray"):
        location(uri)


@pytest.mark.parametrize("path", ["a::b.png", "/tmp/~", "memory://x", "/tmp/zzz://x"])
def test_a_path_is_a_path_whatever_characters_it_has(path: str) -> None:
    assert str(location(path)) == str(UPath(path))


def test_a_path_that_no_file_system_takes_is_told() -> None:
    with pytest.raises(BadInput, match=r"^x{100}…: is longer than a path can be$"):
        location("x" * 5000)
