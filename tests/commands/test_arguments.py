from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ovr_ray.commands.arguments import check_output, is_folder, read_picks
from ovr_ray.errors import BadInput


def test_picks_are_read_by_task() -> None:
    assert read_picks(["crack=3", "inactive=inactive-0001@5"]) == {"crack": "3", "inactive": "inactive-0001@5"}


def test_all_malformed_picks_are_named_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        read_picks(["crack", "inactive=", "=3", "", "tape=1", "line=1", "line=2"])
    wrong = ["crack", "inactive=", "=3", "", "line=1", "line=2"]
    assert [fault.where for fault in caught.value.faults] == [f"--pick {pick!r}" for pick in wrong]


def test_predictions_go_into_a_folder_unless_the_output_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "v1.0").mkdir()
    for output in (None, "a.csv", "s3://bucket/a.parquet"):
        assert not is_folder(output)
    for output in ("parts", "v2.0/", str(tmp_path / "v1.0"), "s3://bucket/parts"):
        assert is_folder(output)
    with pytest.raises(BadInput, match=r"--output a\.txt: is neither \.csv nor \.parquet"):
        is_folder("a.txt")


@pytest.mark.parametrize("kind", [str, Path])
def test_an_output_whose_folder_does_not_exist_is_refused(kind: Callable[[Path], str | Path], tmp_path: Path) -> None:
    check_output(kind(tmp_path / "a.csv"))
    with pytest.raises(BadInput, match="its folder does not exist"):
        check_output(kind(tmp_path / "no" / "a.csv"))


@pytest.mark.parametrize("output", ["", " "])
def test_an_output_without_a_name_is_refused(output: str) -> None:
    with pytest.raises(BadInput, match=f"--output {output!r}: names no file"):
        check_output(output)


def test_an_output_in_a_bucket_needs_no_folder() -> None:
    check_output(None)
    check_output("s3://bucket/no/a.csv")


def test_in_a_job_an_output_needs_an_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ovr_ray.ray_quirks.in_job", lambda: True)
    check_output(tmp_path / "a.csv")
    with pytest.raises(BadInput, match="a job's folder goes away"):
        check_output("a.csv")
