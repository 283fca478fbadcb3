from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from ovr_ray.images.files import stamps


@pytest.fixture(params=["a disk", "a bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """A folder with two files, one of them in a subfolder."""
    folder = UPath(tmp_path) if request.param == "a disk" else UPath(f"memory://{tmp_path.name}/files")
    for name in ("a.png", "below/b ü.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1234")
    return folder


def test_only_existing_files_have_a_stamp(folder: UPath) -> None:
    names = ["a.png", "below/b ü.png", "below", "c.png", "./a.png"]
    assert stamps(str(folder), names).keys() == {"a.png", "below/b ü.png", "./a.png"}


def test_a_stamp_changes_when_its_file_is_written(folder: UPath) -> None:
    before = stamps(str(folder), ["a.png", "below/b ü.png"])
    (folder / "a.png").write_bytes(b"12345")
    after = stamps(str(folder), ["a.png", "below/b ü.png"])
    assert after["a.png"] != before["a.png"]
    assert after["below/b ü.png"] == before["below/b ü.png"]
    (folder / "a.png").write_bytes(b"54321")
    assert stamps(str(folder), ["a.png"]) != after
