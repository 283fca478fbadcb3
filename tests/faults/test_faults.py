"""The short form of ``python -m tests.faults``: a few shots, and the proof that they would be felt."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from data.elpv import prepare
from tests.faults.harness import Hunt, compare, recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images."""
    spec = find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("elpv")
    prepare(Path(spec.origin).parent / "data", folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Hunt:
    folder = tmp_path_factory.mktemp("undisturbed")
    hunt = Hunt(folder, recipe(data, folder, "undisturbed", "tpe", "asha", trials=3), random.Random(0))
    hunt.undisturbed()
    return hunt


def test_a_search_whose_driver_and_workers_are_shot_is_the_undisturbed_search(
    undisturbed: Hunt, data: Path, tmp_path: Path
) -> None:
    hunt = Hunt(tmp_path, recipe(data, tmp_path, "shot", "tpe", "asha", trials=3), random.Random(1))
    hunt.shoot_driver(2, within=25)
    hunt.shoot_workers(2, within=6)
    assert len(hunt.shots) == 4
    wrong = compare(undisturbed.run, hunt)
    assert set(wrong.values()) == {0}, wrong


@pytest.mark.long
def test_a_safeguard_that_is_missing_is_felt(undisturbed: Hunt, data: Path, tmp_path: Path) -> None:
    hunt = Hunt(
        tmp_path, recipe(data, tmp_path, "sabotaged", "tpe", "asha", trials=3), random.Random(2), sabotage="optimizer"
    )
    hunt.shoot_workers(3, within=4, in_its_stride=True)
    assert compare(undisturbed.run, hunt)["other epochs"] > 0
