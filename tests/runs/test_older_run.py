"""A run folder that version 0.1.0 of November 2026 made, before its records had types, still works.

``older.tar.xz`` was made by commit a9fe21c: an interrupted search of two labels (crack-0002 is unfinished,
inactive-0001 was not begun), a joint model of two checkpoints with flips and calibration, its evaluation, and a refit
of two folds. The weights of the network's body have two values per tensor, so that the archive is small.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

import ovr_ray
from ovr_ray.runs import RunFolder, Status

MADE_IN = "/tmp/fx/made"
"""Folder in which the run was made; its text files name it."""


@pytest.fixture(scope="module")
def older(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run folder, unpacked beside the images that it was made from (they are drawn from a seed)."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(Path(__file__).with_name("older.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    (folder / "runs").mkdir()
    shutil.move(folder / "older", folder / "runs/older")
    shutil.copytree(cells, folder / "cells")
    for file in [*folder.rglob("*.yaml"), *folder.rglob("*.json")]:
        file.write_text(file.read_text().replace(MADE_IN, str(folder)))
    return RunFolder.open(folder / "runs/older")


def test_what_it_wrote_is_taken_for_its_own(older: RunFolder) -> None:
    assert sum(file.exists() for file in older.outputs()) == 4  # it was not reported
    older.refuse_foreign()


def test_its_records_are_read(older: RunFolder) -> None:
    counts = ovr_ray.status(older)
    assert counts[["begun", "budget", Status.UNFINISHED]].to_numpy().tolist() == [[3, 3, 1], [1, 2, 0]]
    assert older.winners()["crack"].trial == "crack-0001"
    assert older.winners()["crack"].members == ["crack-0001@1", "crack-0002@1"]
    assert older.refit.record().folds == 2


def test_it_is_reported_with_the_joint_model_that_it_has(older: RunFolder) -> None:
    page = ovr_ray.report(older).read_text(encoding="utf-8")
    assert "crack-0001" in page
    assert "predicted yes" in page  # the confusion matrices of its metrics.json


@pytest.mark.slow
def test_it_is_combined_from_its_search_and_from_its_refit(older: RunFolder, tmp_path: Path) -> None:
    before = json.loads((older.path / "winners.json").read_text())
    model = ovr_ray.combine(older, output=str(tmp_path / "search.pt"))
    assert json.loads((tmp_path / "search.winners.json").read_text())["crack"]["trial"] == before["crack"]["trial"]
    assert model.metadata.labels == ["crack", "inactive"]
    folds = ovr_ray.combine(older, output=str(tmp_path / "refit.pt"), source="refit")
    assert folds.metadata.trained_on == ("train", "val")
    assert len(folds.metadata.refinement["crack"].members) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_its_refit_is_complete_and_is_not_made_again(older: RunFolder) -> None:
    fold = older.refit.fold("crack", 0).path / "predictions.csv"
    before = fold.stat().st_mtime_ns
    ovr_ray.refit(older, folds=2)
    assert fold.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_its_search_is_resumed_from_the_last_epoch(older: RunFolder) -> None:
    finished = older.trial("crack", 0).epochs()
    unfinished = older.trial("crack", 2).epochs()
    ovr_ray.tune(older.recipe())
    counts = ovr_ray.status(older)
    assert counts[Status.UNFINISHED].tolist() == [0, 0]
    assert counts.begun.tolist() == [3, 2]
    resumed = older.trial("crack", 2).epochs()
    assert resumed[unfinished.columns].head(len(unfinished)).equals(unfinished)
    assert resumed.precision.isna().tolist() == [True] * len(unfinished) + [False] * (len(resumed) - len(unfinished))
    assert older.trial("crack", 0).epochs().equals(finished)
    metrics = ovr_ray.evaluate(ovr_ray.combine(older))
    assert metrics["images"] == 16
