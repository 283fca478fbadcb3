"""Real refits on real Ray Train, of a copy of the finished run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ovr_ray
from ovr_ray.errors import BadInput, RunFailed
from ovr_ray.images import read_image, read_labels
from ovr_ray.joint import Refinement, load_torchscript, read_winners
from ovr_ray.joint.winners import last_of
from ovr_ray.model import choose_threshold, load_sub_model
from ovr_ray.runs import RefitRecord, RunFolder, Status
from tests.support import PATIENCE, copy_run, end, rows

pytestmark = pytest.mark.slow
FOLDS = 3  # with two, as many images of each class could be held out as are trained on
TASK = "crack"


def on_cpus(run: RunFolder) -> RunFolder:
    """Change the recipe so that folds hold no GPU; those of the tests' Ray are only declared."""
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("gpu: auto", "gpu: 0"))
    return run


@pytest.fixture(scope="module")
def refitted(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run of which one task was refitted."""
    return ovr_ray.refit(copy_run(finished, tmp_path_factory.mktemp("refitted")), FOLDS, tasks=[TASK])


@pytest.fixture
def run(refitted: RunFolder, tmp_path: Path) -> RunFolder:
    """Return a copy that a test may change."""
    return copy_run(refitted, tmp_path)


def out_of_fold(run: RunFolder) -> pd.DataFrame:
    table = run.refit.out_of_fold(TASK)
    assert table is not None
    return table


def pixels(run: RunFolder, filenames: pd.Series) -> torch.Tensor:
    data = run.recipe().data
    return torch.stack(
        [torch.from_numpy(read_image(f"{data.images}/{f}", data, data.image_size).copy()) for f in filenames]
    )


def test_a_refit_finds_images_that_were_moved(run: RunFolder, cells: Path, tmp_path: Path) -> None:
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(cells), "/gone"))
    shutil.copytree(cells, tmp_path / "moved")
    before = run.refit.record()
    with pytest.raises(BadInput, match=r"/gone: holds none of the run's 80 images[\s\S]*--images DIR"):
        ovr_ray.refit(run, FOLDS, tasks=[TASK])
    ovr_ray.refit(run, FOLDS, tasks=[TASK], images=str(tmp_path / "moved"))
    assert run.refit.record() == before
    fold = run.refit.fold(TASK, 0)
    (fold.path / "predictions.csv").unlink()
    (run.refit.path / f"{TASK}.csv").unlink()
    ovr_ray.refit(run, FOLDS, tasks=[TASK], images=str(tmp_path / "moved"))
    assert fold.predictions() is not None


@torch.inference_mode()
def test_no_image_is_predicted_by_a_sub_model_that_was_trained_on_it(refitted: RunFolder) -> None:
    table = out_of_fold(refitted)
    for number in range(FOLDS):
        fold = refitted.refit.fold(TASK, number)
        held_out, others = table[table.fold == number], table[table.fold != number]
        member = last_of(fold)
        assert member is not None
        sub_model = load_sub_model(member.checkpoint, member.card)
        assert sub_model(pixels(refitted, held_out.filename)).numpy() == pytest.approx(held_out.logit, abs=1e-4)
        seen = pixels(refitted, others.filename) / 255
        assert member.card.mean == pytest.approx([seen.mean().item()], abs=1e-5)
        for split, images in (("train", others), ("val", held_out)):
            for outcomes, label in (("tp", "fn"), 1), (("tn", "fp"), 0):
                counted = fold.epochs()[[f"{split}_{name}" for name in outcomes]].sum(axis=1)
                assert (counted == (images.label == label).sum()).all()


def test_every_image_of_train_and_val_is_held_out_once_and_none_of_test(refitted: RunFolder) -> None:
    split, table = refitted.split(), out_of_fold(refitted)
    assert sorted(table.filename) == sorted(split.filename[split.part != "test"])
    truth = read_labels(refitted.recipe().data, refitted.recipe().tasks).named(table.filename).labels[TASK]
    assert table.label.tolist() == truth.tolist()


def test_a_fold_is_trained_as_long_as_the_winner_was_and_keeps_one_checkpoint(refitted: RunFolder) -> None:
    winner = read_winners(refitted)[TASK]
    for number in range(FOLDS):
        fold = refitted.refit.fold(TASK, number)
        epochs = fold.epochs()
        assert epochs.epoch.tolist() == list(range(1, winner.card.epoch + 1))
        rates = refitted.trial(TASK, int(winner.trial[-4:])).epochs().lr
        assert epochs.lr.tolist() == pytest.approx(rates[: len(epochs)].tolist())
        assert [folder.name for folder in fold.checkpoints()] == [f"checkpoint-{winner.card.epoch:04d}"]


def test_complete_folds_are_kept_one_resumes_from_its_checkpoint_and_one_made_again_is_the_same(run: RunFolder) -> None:
    before, folds = out_of_fold(run), [run.refit.fold(TASK, number) for number in range(FOLDS)]
    epochs = [fold.epochs() for fold in folds]
    (run.refit.path / f"{TASK}.csv").unlink()
    (folds[0].path / "predictions.csv").unlink()
    folds[0].write_epochs(rows(epochs[0][:-1]))
    shutil.rmtree(str(folds[1].path))
    kept = (folds[2].path / "predictions.csv").stat().st_mtime_ns
    ovr_ray.refit(run, FOLDS, tasks=[TASK])
    pd.testing.assert_frame_equal(out_of_fold(run), before, atol=1e-5)
    assert all(folds[number].epochs().equals(epochs[number]) for number in (0, 2))
    assert folds[1].epochs().train_loss.tolist() == pytest.approx(epochs[1].train_loss.tolist())
    assert (folds[2].path / "predictions.csv").stat().st_mtime_ns == kept


def test_folds_may_see_images_of_another_size_than_their_winner(run: RunFolder) -> None:
    assert read_winners(run)[TASK].card.image_size == 32
    shutil.rmtree(str(run.refit.path))
    ovr_ray.refit(run, 2, tasks=[TASK], image_size=24)
    members = [last_of(run.refit.fold(TASK, number)) for number in range(2)]
    assert [(m.card.image_size, m.card.config["image_size"]) for m in members if m] == [(24, 24)] * 2
    ovr_ray.combine(run, tasks=[TASK], source="refit")
    model, _ = load_torchscript((run.path / "joint.pt").read_bytes())
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 1)
    assert json.loads((run.path / "winners.json").read_text())[TASK]["config"]["image_size"] == 24
    ovr_ray.refit(run, 2, tasks=[TASK])  # keeps the size that it began with
    with pytest.raises(BadInput, match=r"at 24 pixels, and would be from .* at 32 pixels now"):
        ovr_ray.refit(run, 2, tasks=[TASK], image_size=32)


def test_a_refit_of_something_else_is_refused_with_the_difference(run: RunFolder) -> None:
    with pytest.raises(BadInput, match=r"folds: was 3 when the refit began and is 4 now[\s\S]*delete "):
        ovr_ray.refit(run, 4, tasks=[TASK])
    winner = read_winners(run)[TASK].trial
    names = [trial.folder.name for trial in run.trials([TASK])]
    other = next(name for name in names if name != winner)
    ovr_ray.combine(run, {TASK: other})
    with pytest.raises(BadInput, match=rf"made from {winner}@\d+ at 32 pixels, and would be from {other}@\d+ at 32"):
        ovr_ray.refit(run, FOLDS, tasks=[TASK])


def test_a_refit_that_is_impossible_is_refused_with_the_reason(run: RunFolder) -> None:
    with pytest.raises(BadInput, match="no such task"):
        ovr_ray.refit(run, tasks=["dust"])
    with pytest.raises(BadInput, match=r"--workers 9: task 'crack' has batches of 16[\s\S]*--workers 9: task"):
        ovr_ray.refit(run, workers=9)
    recipe = run.path / "recipe.yaml"
    whole = recipe.read_text()
    recipe.write_text(whole.replace("gpu: auto", "gpu: 0.5"))
    with pytest.raises(
        BadInput, match=r"--workers 2: would put two workers of a fold on one GPU, .* holds 0\.5 of one"
    ):
        ovr_ray.refit(run, workers=2)
    recipe.write_text(whole)
    with pytest.raises(BadInput, match="this cluster has no room for 3 workers with 1 CPU, 1 GPU each"):
        ovr_ray.refit(run, workers=3)
    for size in (4, 64):
        with pytest.raises(BadInput, match=rf"task 'crack': cannot be refitted at {size} pixels.*stored with 32"):
            ovr_ray.refit(run, image_size=size)
    last = next(trial for trial in run.trials([TASK]) if trial.record.status == Status.FINISHED)
    ovr_ray.combine(run, {TASK: f"{last.folder.name}@3"})
    recipe.write_text(whole.replace("max_epochs: 3", "max_epochs: 1"))
    with pytest.raises(BadInput, match="has 3 epochs, this run's trials have 1 at most"):
        ovr_ray.refit(run)
    recipe.write_text(whole)
    shutil.rmtree(str(run.refit.path))
    with pytest.raises(BadInput, match="--folds 60, task 'crack': needs images of both classes"):
        ovr_ray.refit(run, 60, tasks=[TASK])
    assert run.refit.record() == RefitRecord()  # another number may be tried
    (run.path / "winners.json").unlink()
    for trial in run.trials():
        failed = {"status": Status.FAILED, "reason": "CUDA out of memory"}
        trial.folder.write_record(trial.record.model_copy(update=failed))
    with pytest.raises(RunFailed, match="no trial of task 'crack' came to its end"):
        ovr_ray.refit(run, tasks=[TASK])


def test_the_joint_model_has_the_mean_of_the_folds_and_its_threshold_from_out_of_fold(run: RunFolder) -> None:
    model = ovr_ray.combine(run, tasks=[TASK], source="refit")
    table = out_of_fold(run)
    probability = torch.from_numpy(table.logit.to_numpy(copy=True)).sigmoid().numpy()
    expected = pytest.approx([choose_threshold(table.label.to_numpy(), probability)], abs=1e-5)
    joint, metadata = load_torchscript((run.path / "joint.pt").read_bytes())
    assert metadata.thresholds == expected
    assert joint.thresholds.tolist() == expected
    assert metadata.winners[TASK].startswith(f"mean of {FOLDS} folds of crack-000")
    assert set(metadata.metrics[TASK]) == {f"out_of_fold_{name}" for name in ("f1", "average_precision", "brier")}
    batch = pixels(run, table.filename[:4])
    members = [last_of(run.refit.fold(TASK, number)) for number in range(FOLDS)]
    with torch.inference_mode():
        mean = torch.stack([load_sub_model(m.checkpoint, m.card)(batch) for m in members if m]).mean(0)
        assert torch.allclose(joint(batch)[:, 0], mean.sigmoid(), atol=1e-4)
    winner = json.loads((run.path / "winners.json").read_text())[TASK]
    assert winner["from"] == "refit"
    assert [name.partition("@")[0] for name in winner["members"]] == [
        f"{TASK}-fold-{number}" for number in range(FOLDS)
    ]
    metrics = ovr_ray.evaluate(model)
    assert "validation" not in metrics  # it was trained on that
    assert set(pd.read_csv((run.path / "predictions.csv").open(), sep=";").part) == {"test"}
    assert "The joint model averages crack-fold-0@" in ovr_ray.report(run).read_text()


def test_flips_and_calibration_are_fitted_out_of_fold(run: RunFolder) -> None:
    refinement = Refinement(flip_average=True, calibrate="temperature")
    model = ovr_ray.combine(run, tasks=[TASK], refinement=refinement, source="refit")
    steps = model.metadata.refinement[TASK].out_of_fold
    assert steps
    assert list(steps) == ["a fold alone", "mean of four flips", "temperature"]
    table = out_of_fold(run)
    with torch.inference_mode():
        member = last_of(run.refit.fold(TASK, 0))
        assert member is not None
        own = table[table.fold == 0]
        sub_model, images = load_sub_model(member.checkpoint, member.card), pixels(run, own.filename)
        flips = [images, images.flip(2), images.flip(3), images.flip(2, 3)]
        mean = np.mean([sub_model(view).numpy() for view in flips], axis=0)
    assert own.logit_flips.to_numpy() == pytest.approx(mean, abs=1e-4)


def test_combine_names_what_a_refit_lacks_and_refuses_picks(run: RunFolder) -> None:
    with pytest.raises(RunFailed, match="task 'inactive' has no whole refit; run ovr-ray refit"):
        ovr_ray.combine(run, source="refit")
    with pytest.raises(BadInput, match="leave out --pick and --top-k"):
        ovr_ray.combine(run, {TASK: "1"}, source="refit")
    with pytest.raises(BadInput, match="leave out --pick and --top-k"):
        ovr_ray.combine(run, refinement=Refinement(top_k=2), source="refit")


@pytest.mark.long
def test_two_workers_see_all_images_of_every_epoch_together(finished: RunFolder, tmp_path: Path) -> None:
    run = ovr_ray.refit(on_cpus(copy_run(finished, tmp_path)), FOLDS, workers=2, tasks=[TASK])
    table = out_of_fold(run)
    for number in range(FOLDS):
        epochs = run.refit.fold(TASK, number).epochs()
        counted = epochs[[f"train_{name}" for name in ("tn", "fp", "fn", "tp")]].sum(axis=1)
        assert len(epochs) == read_winners(run)[TASK].card.epoch
        assert (counted == (table.fold != number).sum()).all()
        assert np.isfinite(epochs.train_loss).all()


@pytest.mark.long
def test_a_killed_refit_is_resumed_by_the_same_command(finished: RunFolder, tmp_path: Path) -> None:
    run = on_cpus(copy_run(finished, tmp_path))
    command = [sys.executable, "-m", "ovr_ray.commands.cli", "refit", str(run.path), "--folds", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    folds = [run.refit.fold(task, number) for task in run.recipe().tasks for number in range(2)]
    try:
        for _ in range(1200):
            if any(len(fold.epochs()) for fold in folds) or first.poll() is not None:
                break
            time.sleep(0.1)
        assert first.poll() is None
    finally:
        end(first)
    before = {fold.name: fold.epochs() for fold in folds}
    assert any(len(epochs) for epochs in before.values())
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    for fold in folds:
        epochs, known = fold.epochs(), before[fold.name]
        assert epochs.epoch.tolist() == list(range(1, len(epochs) + 1))
        assert fold.predictions() is not None
        if len(known):
            assert epochs[: len(known)].time.tolist() == known.time.tolist()
