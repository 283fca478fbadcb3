"""The short form of ``python -m tests.faults``: a few kills, and the proof that their effects would be noticed."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from data.elpv import prepare
from tests.faults.harness import PROJECT, SAFEGUARDS, DisturbedSearch, Kind, Safeguard, code_without, compare, recipe

TPE_ASHA = Kind("tpe", "asha")

long_timeout = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real images."""
    spec = find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("elpv")
    prepare(Path(spec.origin).parent / "data", folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> DisturbedSearch:
    """A finished search in which nothing was killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plain = recipe(data, folder, "undisturbed", TPE_ASHA, trials=3)
    search = DisturbedSearch(folder, plain, random.Random(0))
    search.finish()
    return search


@pytest.mark.slow
@long_timeout
def test_a_search_whose_driver_and_workers_are_killed_ends_as_the_undisturbed_search(
    undisturbed: DisturbedSearch, data: Path, tmp_path: Path
) -> None:
    search = DisturbedSearch(tmp_path, recipe(data, tmp_path, "killed", TPE_ASHA, trials=3), random.Random(1))
    search.kill_driver(2, within=25)
    search.kill_workers(2, within=6)
    assert len(search.kills) == 4
    differences = compare(undisturbed.run, search)
    assert set(differences.values()) == {0}, differences


@pytest.mark.slow
@long_timeout
def test_halving_ends_the_same_to_the_last_digit_with_one_slot_and_with_four_whose_trials_are_killed(
    data: Path, tmp_path: Path
) -> None:
    names = {
        slots: recipe(data, tmp_path, f"slots{slots}", Kind("tpe", "halving", slots), trials=5) for slots in (1, 4)
    }
    alone, crowded = (DisturbedSearch(tmp_path, names[slots], random.Random(slots)) for slots in (1, 4))
    alone.finish()
    crowded.kill_driver(1, within=25)
    crowded.kill_workers(2, within=6)
    assert len(crowded.kills) == 3
    differences = compare(alone.run, crowded, tolerance=0)
    assert set(differences.values()) == {0}, differences


@pytest.mark.slow
@pytest.mark.long
@long_timeout
def test_the_comparison_fails_without_a_safeguard(undisturbed: DisturbedSearch, data: Path, tmp_path: Path) -> None:
    plain = recipe(data, tmp_path, "without", TPE_ASHA, trials=3)
    search = DisturbedSearch(tmp_path, plain, random.Random(2), without="optimizer")
    search.kill_workers(3, within=4, after_a_checkpoint=True)
    assert compare(undisturbed.run, search)["other epochs"] > 0


@pytest.mark.parametrize("safeguard", SAFEGUARDS)
def test_the_copy_without_a_safeguard_lacks_that_line_and_nothing_else(safeguard: Safeguard, tmp_path: Path) -> None:
    name, line = SAFEGUARDS[safeguard]
    package = code_without(safeguard, tmp_path) / "ovr_ray"
    originals = {file.relative_to(PROJECT / "ovr_ray"): file for file in (PROJECT / "ovr_ray").rglob("*.py")}
    assert {file.relative_to(package) for file in package.rglob("*.py")} == originals.keys()
    changed = [file for file, original in originals.items() if (package / file).read_text() != original.read_text()]
    assert changed == [Path(name)]
    before, after = originals[Path(name)].read_text(), (package / name).read_text()
    assert after == before.replace(line, "")
    compile(after, name, "exec")
