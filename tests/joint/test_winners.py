from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from upath import UPath

from ovr_ray.errors import BadInput, RunFailed
from ovr_ray.joint import choose, read_winners
from ovr_ray.joint.winners import last_of, ranked
from ovr_ray.model import Card, read_card
from ovr_ray.recipe import Config, Recipe
from ovr_ray.runs import RunFolder, Status, TrialRecord

Scored = Mapping[int, tuple[float, float]]
"""Epoch of a checkpoint -> its F1 and average precision on validation."""


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    """Return a recipe that compares trials by F1."""
    return make_recipe(search={"metric": "f1"})


@pytest.fixture
def run(recipe: Recipe) -> RunFolder:
    """Return an empty run folder."""
    return RunFolder.of(recipe)


def write_trial(
    run: RunFolder, number: int, scored: Scored, status: Status = Status.FINISHED, task: str = "crack", reason: str = ""
) -> None:
    """Write a trial and its checkpoints, whose weights are four bytes that no test loads."""
    folder = run.trial(task, number)
    folder.write_record(TrialRecord(task=task, number=number, status=status, config=Config(), reason=reason))
    for epoch, (f1, precision) in scored.items():
        metrics = {"val_f1": f1, "val_average_precision": precision}
        card = Card(task, {}, epoch, metrics, 0.5, 32, 32, 1, [0.5], [0.2], weights_bytes=4)
        folder.checkpoint(epoch).mkdir()
        (folder.checkpoint(epoch) / "weights.pt").write_bytes(bytes(4))
        (folder.checkpoint(epoch) / "sub_model.json").write_text(json.dumps(asdict(card)))


def names(run: RunFolder, recipe: Recipe, picks: Mapping[str, str] = {}) -> list[str]:
    """Return the ranking of the task ``crack``."""
    return [winner.name for winner in ranked(run, recipe, picks, ["crack"])["crack"]]


def test_the_winner_is_the_best_checkpoint_then_comes_the_best_of_each_other_trial(
    run: RunFolder, recipe: Recipe
) -> None:
    write_trial(run, 0, {1: (0.5, 0.5), 2: (0.6, 0.5)})
    write_trial(run, 1, {1: (0.9, 0.5), 3: (0.8, 0.9)})
    write_trial(run, 2, {2: (0.7, 0.5)}, Status.STOPPED)
    assert names(run, recipe) == ["crack-0001@1", "crack-0002@2", "crack-0000@2"]


def test_among_equal_scores_the_higher_average_precision_wins_then_the_earlier_epoch(
    run: RunFolder, recipe: Recipe
) -> None:
    write_trial(run, 0, {1: (0.5, 0.5)})
    write_trial(run, 1, {2: (0.5, 0.6), 3: (0.5, 0.6)})
    assert names(run, recipe) == ["crack-0001@2", "crack-0000@1"]


def test_a_run_without_a_scored_trial_has_no_winner_unless_one_is_picked(run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, {1: (0.5, 0.5)}, Status.UNFINISHED)
    write_trial(run, 1, {1: (0.6, 0.5)}, Status.DIVERGED)
    with pytest.raises(RunFailed, match="no trial of task 'crack' came to its end"):
        choose(run, recipe, tasks=["crack"])
    assert names(run, recipe, {"crack": "0"}) == ["crack-0000@1"]


def test_before_the_first_trial_the_error_says_to_tune_first(run: RunFolder, recipe: Recipe) -> None:
    with pytest.raises(BadInput, match="has no trial yet of crack, inactive\n    -> run ovr-ray tune first"):
        choose(run, recipe)
    write_trial(run, 0, {1: (0.5, 0.5)})
    with pytest.raises(RunFailed, match="task 'inactive' came to its end: none of its trials has begun"):
        choose(run, recipe)


def test_a_task_without_a_checkpoint_is_named_with_the_reasons_of_its_trials(run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, {1: (0.5, 0.5)})
    write_trial(run, 0, {}, Status.DIVERGED, "inactive")
    write_trial(run, 2, {}, Status.FAILED, "inactive", "CUDA out of memory")
    with pytest.raises(RunFailed) as caught:
        choose(run, recipe)
    assert str(caught.value) == (
        "no trial of task 'inactive' came to its end: its trials:\n"
        "    inactive-0000: diverged\n    inactive-0002: failed: CUDA out of memory"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "content"), [("weights.pt", b"1"), ("sub_model.json", b"{"), ("sub_model.json", b"\xff")]
)
def test_damaged_checkpoints_of_a_finished_trial_are_named(
    name: str, content: bytes, run: RunFolder, recipe: Recipe
) -> None:
    write_trial(run, 0, {2: (0.5, 0.5)})
    write_trial(run, 1, {}, Status.STOPPED)
    (run.trial("crack", 0).checkpoint(2) / name).write_bytes(content)
    with pytest.raises(BadInput, match="damaged in trials/crack-0000/checkpoint-0002, trials/crack-0001\n    -> bring"):
        choose(run, recipe, tasks=["crack"])


def test_unknown_tasks_are_refused_with_the_known_ones(run: RunFolder, recipe: Recipe) -> None:
    with pytest.raises(BadInput, match="'crak': no such task\n    -> tasks: crack, inactive"):
        choose(run, recipe, tasks=["crak"])
    with pytest.raises(BadInput, match="'crak': no such task"):
        choose(run, recipe, picks={"crak": "0"})


def test_a_pick_for_a_task_that_is_left_out_is_refused(run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, {1: (0.5, 0.5)})
    with pytest.raises(BadInput, match="--pick 'inactive=0': is for a task that is left out: --task crack\n"):
        choose(run, recipe, {"inactive": "0"}, ["crack"])


@pytest.mark.parametrize("pick", ["1", "0001", "crack-0001"])
def test_a_picked_trial_gives_its_best_checkpoint(pick: str, run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, {1: (0.9, 0.5)})
    write_trial(run, 1, {1: (0.2, 0.5), 2: (0.3, 0.5), 3: (0.1, 0.5)})
    assert names(run, recipe, {"crack": pick}) == ["crack-0001@2", "crack-0000@1"]


@pytest.mark.parametrize("pick", ["1@3", "crack-0001@3", "crack-0001@0003", "{path}"])
def test_a_checkpoint_can_be_picked_by_its_epoch_or_its_path(pick: str, run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, {1: (0.9, 0.5)})
    write_trial(run, 1, {1: (0.2, 0.5), 3: (0.1, 0.5)})
    pick = pick.format(path=run.trial("crack", 1).checkpoint(3))
    assert names(run, recipe, {"crack": pick})[0] == "crack-0001@3"


@pytest.mark.parametrize(
    "pick",
    [
        *("99", "crack-0000@77", "inactive-0000", "/nowhere", "{other_task}", "{other_run}"),
        *("../../x", "@", "a@b", "0@", "0@x", "@1", "☀", "٣", "a\0b", "~", "~nobody/x", "a::b", "s3://bucket/x"),
        pytest.param("9" * 5000, id="a long number"),
        pytest.param("x" * 5000, id="a long name"),
    ],
)
def test_a_pick_that_is_no_checkpoint_of_the_task_is_refused(pick: str, run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, {1: (0.9, 0.5)})
    write_trial(run, 0, {1: (0.9, 0.5)}, task="inactive")
    other_run = run.path.with_name("other")
    shutil.copytree(str(run.path), str(other_run))
    others = {"other_task": run.trial("inactive", 0).checkpoint(1)}
    others["other_run"] = RunFolder(other_run).trial("crack", 0).checkpoint(1)
    pick = pick.format(**others)
    with pytest.raises(BadInput) as caught:
        choose(run, recipe, {"crack": pick})
    assert f"--pick: task 'crack' has no whole checkpoint {pick!r}" in str(caught.value)
    assert str(caught.value).endswith("there are: crack-0000@1")


def test_of_many_checkpoints_a_message_names_the_first(run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, dict.fromkeys(range(1, 26), (0.9, 0.5)))
    with pytest.raises(BadInput, match=r"crack-0000@1, .* and 5 more$"):
        choose(run, recipe, {"crack": "1"})


def test_an_incomplete_checkpoint_is_neither_a_winner_nor_the_last_one(run: RunFolder, recipe: Recipe) -> None:
    write_trial(run, 0, {1: (0.5, 0.5), 2: (0.9, 0.5), 3: (0.9, 0.5), 4: (0.9, 0.5)})
    trial = run.trial("crack", 0)
    (trial.checkpoint(2) / "weights.pt").write_bytes(bytes(3))
    (trial.checkpoint(3) / "sub_model.json").unlink()
    (trial.checkpoint(4) / "sub_model.json").write_text('{"task": "cra')
    assert names(run, recipe) == ["crack-0000@1"]
    last = last_of(trial)
    assert last is not None
    assert last.card.epoch == 1
    assert last_of(run.trial("crack", 1)) is None


def test_a_record_has_the_path_below_the_run_folder_where_the_checkpoint_lies_in_it(
    run: RunFolder, recipe: Recipe, tmp_path: Path
) -> None:
    write_trial(run, 0, {1: (0.5, 0.5)})
    winner = choose(run, recipe, tasks=["crack"])["crack"]
    assert winner.record(run).checkpoint == "trials/crack-0000/checkpoint-0001"
    assert winner.record(RunFolder(UPath(tmp_path / "elsewhere"))).checkpoint == str(winner.checkpoint)


def test_the_winner_of_a_search_is_the_best_checkpoint_that_its_trials_kept(finished: RunFolder) -> None:
    column = finished.recipe().search.score_column
    for task, winner in finished.winners().items():
        cards = [
            read_card(*checkpoint) for trial in finished.trials([task]) for checkpoint in trial.checkpoints.items()
        ]
        assert winner.metrics[column] == max(card.metrics[column] for card in cards if card)


def test_winners_are_read_back_as_long_as_their_checkpoints_exist(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(str(finished.path), tmp_path / "run")
    run = RunFolder(UPath(tmp_path / "run"))
    assert read_winners(run) == choose(run, run.recipe())
    shutil.rmtree(tmp_path / "run" / run.winners()["crack"].checkpoint)
    assert list(read_winners(run)) == ["inactive"]
    (tmp_path / "run/winners.json").unlink()
    assert read_winners(run) == {}
