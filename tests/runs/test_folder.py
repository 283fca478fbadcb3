from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.recipe import Config, Recipe
from ovr_ray.runs import (
    Clock,
    RunFolder,
    Status,
    TrialFolder,
    TrialRecord,
    metrics_beside,
    predictions_beside,
    read_epochs,
)

SPLIT = pd.DataFrame({"filename": ["a.png"], "part": ["train"]})


def record(task: str, number: int) -> TrialRecord:
    return TrialRecord(task=task, number=number, status=Status.FINISHED, config=Config(lr=1e-3))


@pytest.fixture
def begun(make_recipe: Callable[..., Recipe]) -> RunFolder:
    run = RunFolder.of(make_recipe())
    run.begin(make_recipe(), "fingerprint", SPLIT)
    run.trial("crack", 0).write_record(record("crack", 0))
    return run


def test_a_run_remembers_its_recipe_split_and_versions(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    assert begun.recipe() == make_recipe()
    assert begun.split().equals(SPLIT)
    assert begun.made_with().data_fingerprint == "fingerprint"
    assert {"torch", "ray"} < begun.made_with().versions.keys()


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


def test_the_last_epoch_of_a_search_by_halving_may_only_grow(make_recipe: Callable[..., Recipe]) -> None:
    def halving(max_epochs: int) -> Recipe:
        search = {"scheduler": "halving", "max_epochs": max_epochs}
        return make_recipe(search=search).model_copy(update={"name": "halving"})

    run = RunFolder.of(halving(3))
    run.begin(halving(3), "fingerprint", SPLIT)
    run.trial("crack", 0).write_record(record("crack", 0))
    run.begin(halving(9), "fingerprint", SPLIT)
    assert run.recipe().search.max_epochs == 9
    with pytest.raises(BadInput, match=r"search\.max_epochs: was 9 .* is 8 now"):
        run.begin(halving(8), "fingerprint", SPLIT)


def test_null_differs_from_an_absent_field(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    task = make_recipe().dump()["tasks"]["crack"]
    del task["default"]["weights"]  # was null, which means random; now torchvision's
    with pytest.raises(BadInput, match=r"tasks\.crack\.default\.weights: was None .* 'absent' now"):
        begun.begin(
            make_recipe(tasks={"crack": task, "inactive": make_recipe().dump()["tasks"]["inactive"]}),
            "fingerprint",
            SPLIT,
        )


def test_the_versions_are_those_that_the_search_began_with(
    begun: RunFolder, make_recipe: Callable[..., Recipe]
) -> None:
    file = begun.path / "recipe.yaml"
    file.write_text(file.read_text().replace(f"ray: {ray.__version__}", "ray: 1.2.3"))
    begun.begin(make_recipe(), "fingerprint", SPLIT)
    assert begun.made_with().versions["ray"] == "1.2.3"


def test_changed_labels_are_refused(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(BadInput, match="labels or their split"):
        begun.begin(make_recipe(), "another", SPLIT)


def test_a_folder_without_a_recipe_is_not_a_run_folder(tmp_path: Path, begun: RunFolder) -> None:
    with pytest.raises(BadInput, match="is not a run folder"):
        RunFolder.open(str(tmp_path))
    assert RunFolder.open(str(begun.path)).recipe() == begun.recipe()
    assert RunFolder.around(begun.joint_model) == begun
    assert RunFolder.around(UPath(tmp_path / "joint.pt")) is None


def test_a_recipe_that_no_search_wrote_makes_no_run_folder(begun: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: flour\ningredients: [made_with: love]\n")
    for path in (tmp_path, tmp_path / "recipe.yaml", begun.joint_model):
        with pytest.raises(BadInput, match=r"is not a run folder: it has no recipe\.yaml that ovr-ray tune wrote"):
            RunFolder.open(str(path))
    assert RunFolder.around(UPath(tmp_path / "joint.pt")) is None


@pytest.mark.parametrize(
    "text", ["name: [\nmade_with: {}\n", "\x00\nmade_with: {}\n", "name: tiny\nmade_with: {versions: 3}\n"]
)
def test_a_damaged_recipe_is_told(text: str, begun: RunFolder) -> None:
    (begun.path / "recipe.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"recipe\.yaml: is damaged, .*\n    -> bring back a copy"):
        RunFolder.open(begun.path).read()


@pytest.mark.parametrize("text", ["", '{"task": "cra', "[1]", "\x00"])
def test_damaged_records_are_told_with_their_file(text: str, begun: RunFolder) -> None:
    begun.refit.path.mkdir()
    readers: dict[UPath, Callable[[], object]] = {
        begun.trial("crack", 0).path / "trial.json": begun.trials,
        begun.path / "winners.json": begun.winners,
        begun.path / "search.json": lambda: Clock(begun.clock),
        begun.refit.path / "refit.json": begun.refit.record,
    }
    for file, read in readers.items():
        file.write_text(text)
        with pytest.raises(BadInput, match=f"{file}: is damaged, or not of this program: "):
            read()


@pytest.mark.parametrize(
    "content", [b"", b"filename;par", b"epoch;filename;part\n1;a.png;te", b"\xff\n", bytes(9), b"a;b\n"]
)
def test_damaged_tables_are_told_with_their_file(content: bytes, begun: RunFolder) -> None:
    trial, other = begun.trial("crack", 0), begun.trial("crack", 1)
    epochs, split = trial.path / "epochs.csv", begun.path / "split.csv"
    other.path.mkdir()
    other.write_epochs([{"epoch": 1, "val_f1": 0.5}])
    reading = [(epochs, trial.epochs), (epochs, lambda: read_epochs([other, trial])), (split, begun.split)]
    for file, read in reading:
        file.write_bytes(content)
        with pytest.raises(BadInput, match=f"{file}: is damaged, or not of this program: "):
            read()
    split.write_text("filename;part\na.png;tes\n")
    with pytest.raises(BadInput, match="no split is called 'tes'"):
        begun.split()
    split.unlink()
    with pytest.raises(BadInput, match=f"{split}: is gone\n    -> bring back a copy"):
        begun.split()


def test_a_recipe_that_was_changed_by_hand_is_told_with_its_field(begun: RunFolder) -> None:
    file = begun.path / "recipe.yaml"
    file.write_text(file.read_text().replace("max_epochs: 3", "max_epochs: many"))
    with pytest.raises(BadInput, match=r"recipe\.yaml: search\.max_epochs: .* not 'many'"):
        begun.recipe()


@pytest.mark.parametrize("name", ["recipe.yaml", "split.csv", "search.json", "warm_start.json", "trials", "refit"])
def test_a_folder_of_somebody_else_is_refused(name: str, make_recipe: Callable[..., Recipe]) -> None:
    run = RunFolder.of(make_recipe())
    (run.path / "trials").parent.mkdir()
    (run.path / name).write_text("precious")
    with pytest.raises(BadInput, match=f"is not the folder of a run, and holds {name} already"):
        run.refuse_foreign()


@pytest.mark.parametrize("name", ["joint.pt", "winners.json", "metrics.json", "predictions.csv", "report.html"])
def test_a_result_of_somebody_else_is_refused_also_in_a_run(name: str, begun: RunFolder) -> None:
    begun.refuse_foreign()
    (begun.path / name).write_text("precious")
    with pytest.raises(BadInput, match=f"{name}: is there already"):
        begun.refuse_foreign()


def test_a_file_where_a_run_folder_would_be_is_refused(make_recipe: Callable[..., Recipe]) -> None:
    run = RunFolder.of(make_recipe())
    run.refuse_foreign()
    run.path.write_text("precious")
    with pytest.raises(BadInput, match="is a file, and would have to be a folder"):
        run.refuse_foreign()


def test_a_folder_with_other_files_or_the_results_of_a_run_may_hold_a_new_run(
    finished: RunFolder, tmp_path: Path
) -> None:
    shutil.copy(str(finished.joint_model), tmp_path / "joint.pt")
    (tmp_path / "notes.txt").write_text("other things")
    RunFolder(UPath(tmp_path)).refuse_foreign()


def test_the_images_of_a_run_may_have_moved_and_labels_that_lay_with_them_move_too(
    begun: RunFolder, cells: Path, tmp_path: Path
) -> None:
    before = (begun.path / "recipe.yaml").read_text()
    data = begun.recipe(str(tmp_path)).data
    assert (data.images, data.labels) == (str(tmp_path), str(cells / "data.csv"))  # the labels are still there
    (begun.path / "recipe.yaml").write_text(before.replace(str(cells), "/gone"))
    data = begun.recipe(str(tmp_path)).data
    assert (data.images, data.labels) == (str(tmp_path), str(tmp_path / "data.csv"))
    assert begun.recipe().data.images == "/gone"


def test_before_the_first_trial_everything_may_change(begun: RunFolder, make_recipe: Callable[..., Recipe]) -> None:
    (begun.trial("crack", 0).path / "trial.json").unlink()
    changed = make_recipe(search={"max_epochs": 9})
    begun.begin(changed, "another", SPLIT)
    assert begun.recipe() == changed


@pytest.fixture(params=["folder", "memory"])
def several(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """Return a run folder, on disk or in an object store, with trials of three tasks, one of them past 9,999."""
    run = RunFolder(UPath(tmp_path) if request.param == "folder" else UPath(f"memory://{tmp_path.name}/run"))
    for task, number in (("dust", 1), ("crack", 10_000), ("crack", 9_999), ("crack-2", 0), ("crack", 2)):
        run.trial(task, number).write_record(record(task, number))
    checkpoint = run.trial("crack", 2).checkpoint(3)
    checkpoint.mkdir()
    (checkpoint / "weights.pt").write_bytes(b"12345")
    (run.trials_path / "experiment_state.json").write_text("a file of Ray Tune's")
    (run.trials_path / "crack-0003").mkdir()
    (run.trials_path / "crack-0003" / "params.json").write_text("a trial without a record")
    return run


def test_trials_are_sorted_by_task_and_number(several: RunFolder) -> None:
    found = [(trial.record.task, trial.record.number, trial.folder.name) for trial in several.trials()]
    assert found == [
        ("crack", 2, "crack-0002"),
        ("crack", 9_999, "crack-9999"),
        ("crack", 10_000, "crack-10000"),
        ("crack-2", 0, "crack-2-0000"),
        ("dust", 1, "dust-0001"),
    ]
    assert [trial.folder.name for trial in several.trials(["crack-2", "dust"])] == ["crack-2-0000", "dust-0001"]
    assert [trial.record.number for trial in several.trials(["crack"])] == [2, 9_999, 10_000]


def test_the_record_of_every_trial_is_read_once(several: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    read, original = Counter[str](), TrialFolder.record

    def counted(folder: TrialFolder) -> TrialRecord:
        read[folder.name] += 1
        return original(folder)

    monkeypatch.setattr(TrialFolder, "record", counted)
    names = [trial.folder.name for trial in several.trials()]
    assert read == dict.fromkeys(names, 1)
    assert len(names) == 5
    read.clear()
    several.trials(["dust"])
    assert read == {"dust-0001": 1}


def test_trials_are_listed_with_the_files_of_their_checkpoints(several: RunFolder) -> None:
    first, *others = several.trials()
    assert first.checkpoints == {first.folder.checkpoint(3): {"weights.pt": 5}} == first.folder.checkpoints()
    assert [trial.checkpoints for trial in others] == [{}] * 4


def test_a_run_without_trials_has_none(tmp_path: Path) -> None:
    run = RunFolder(UPath(tmp_path))
    assert run.trials() == []
    assert not run.is_begun


def test_the_epochs_of_many_trials_are_those_of_each(begun: RunFolder) -> None:
    tables: list[list[dict[str, Any]]] = [
        [{"epoch": 1, "val_f1": 0.5, "device": "cpu"}, {"epoch": 2, "val_f1": 2 / 3, "device": "cpu"}],
        [{"epoch": 1, "val_f1": 1e-9, "device": "cuda;0"}],
        [{"epoch": 1, "val_f1": 0.25, "device": "cpu"}],
        [{"epoch": 1, "lr": 0.1}],
    ]
    folders = [begun.trial("dust", number) for number in range(5)]
    for folder, rows in zip(folders[1:], tables, strict=True):
        folder.path.mkdir(parents=True)
        folder.write_epochs(rows)
    for chosen in ([0], [0, 1, 3], [4, 1, 3], [0, 1, 2, 3, 4]):
        found = read_epochs([folders[i] for i in chosen])
        for place, i in enumerate(chosen):
            own = found[found.place == place] if len(found) else found
            expected = folders[i].epochs()
            assert own.reindex(columns=expected.columns).to_dict("records") == expected.to_dict("records")
        assert len(found) == sum(len(folders[i].epochs()) for i in chosen)


def test_epochs_and_out_of_fold_predictions_are_read_as_they_were_written(begun: RunFolder) -> None:
    trial = begun.trial("crack", 0)
    assert trial.epochs().empty
    rows = [{"epoch": 1, "val_f1": 0.5}, {"epoch": 2, "val_f1": 2 / 3}]
    trial.write_epochs(rows)
    assert trial.epochs().to_dict("records") == rows
    assert begun.refit.out_of_fold("crack") is None
    begun.refit.path.mkdir()
    table = pd.DataFrame({"filename": ["NA", "0001"], "fold": [0, 1], "label": [0, 1], "logit": [-0.25, 1.5]})
    begun.refit.write_out_of_fold("crack", table)
    found = begun.refit.out_of_fold("crack")
    assert found is not None
    pd.testing.assert_frame_equal(found, table)


def test_the_results_of_a_run_are_those_that_exist(begun: RunFolder) -> None:
    assert begun.results() == []
    metrics = metrics_beside(begun.joint_model)
    for file in (begun.report, metrics, predictions_beside(metrics)):
        file.write_text("")
    assert begun.results() == [metrics, begun.report]
