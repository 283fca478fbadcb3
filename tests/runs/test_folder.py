from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import ray

from ovr_ray.errors import BadInput
from ovr_ray.recipe import Recipe
from ovr_ray.runs import RunFolder
from ovr_ray.storage import storage_errors, write_whole

SPLIT = pd.DataFrame({"filename": ["a.png"], "part": ["train"]})


@pytest.fixture
def begun(make_recipe: Callable[..., Recipe]) -> RunFolder:
    run = RunFolder.of(make_recipe())
    run.begin(make_recipe(), "fingerprint", SPLIT)
    run.trial("crack", 0).write_record({"task": "crack", "number": 0})
    return run


def test_a_run_remembers_its_recipe_split_and_versions(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    assert begun.recipe() == make_recipe()
    assert begun.split().equals(SPLIT)
    assert {"torch", "ray"} < begun.made_with()["versions"].keys()


def test_a_changed_recipe_under_the_same_name_is_refused_and_every_difference_shown(
    begun: RunFolder, make_recipe: Callable[..., Recipe]
) -> None:
    changed = make_recipe(search={"max_epochs": 9, "seed": 4})
    with pytest.raises(BadInput) as caught:
        begun.begin(changed, "fingerprint", SPLIT)
    assert "search.max_epochs: was 3 when run 'tiny' began and is 9 now" in str(caught.value)
    assert "search.seed: was 0" in str(caught.value)


def test_what_may_change_may_change(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    changed = make_recipe(
        search={"max_concurrent": 3, "time_budget": 60, "max_failures": 0},
        resources={"cpu": 2},
        checkpoints={"keep": 5},
    )
    begun.begin(changed, "fingerprint", SPLIT)
    assert begun.recipe() == changed


def test_null_is_not_the_same_as_nothing(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    task = make_recipe().dump()["tasks"]["crack"]
    del task["default"]["weights"]  # was null, random; now torchvision's
    with pytest.raises(BadInput, match=r"tasks\.crack\.default\.weights: was None .* 'absent' now"):
        begun.begin(
            make_recipe(tasks={"crack": task, "inactive": make_recipe().dump()["tasks"]["inactive"]}),
            "fingerprint",
            SPLIT,
        )


def test_the_versions_are_those_that_the_search_began_with(
    begun: RunFolder, make_recipe: Callable[..., Recipe]
) -> None:
    file = (begun.path / "recipe.yaml")
    file.write_text(file.read_text().replace(f"ray: {ray.__version__}", "ray: 1.2.3"))
    begun.begin(make_recipe(), "fingerprint", SPLIT)
    assert begun.made_with()["versions"]["ray"] == "1.2.3"


def test_changed_labels_are_refused(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(BadInput, match="labels or their split"):
        begun.begin(make_recipe(), "another", SPLIT)


def test_a_folder_that_is_no_run_is_told(tmp_path: object) -> None:
    with pytest.raises(BadInput, match="is not a run folder"):
        RunFolder.open(str(tmp_path))


def test_before_the_first_trial_everything_may_change(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    (begun.trial("crack", 0).path / "trial.json").unlink()
    changed = make_recipe(search={"max_epochs": 9})
    begun.begin(changed, "another", SPLIT)
    assert begun.recipe() == changed


def test_what_storage_may_raise_can_be_asked_while_botocore_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", ModuleType("botocore.exceptions"))
    assert storage_errors() == (OSError, ImportError, ValueError)


def test_many_may_write_a_file_at_once_and_it_is_always_one_of_theirs(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = [bytes([writer]) * 1_000_000 for writer in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        for _ in range(5):
            list(pool.map(lambda content: write_whole(file, content), contents))
            assert file.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", "new")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
