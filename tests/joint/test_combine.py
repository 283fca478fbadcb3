from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from upath import UPath

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.images import read_labels
from ovr_ray.joint import Refinement, load_torchscript, read_winners
from ovr_ray.joint.refine import validation_images
from ovr_ray.model import choose_threshold, f1_at, load_sub_model
from ovr_ray.runs import RunFolder
from tests.support import random_images

ALL = Refinement(top_k=2, flip_average=True, calibrate="platt")


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """Return a copy of the finished run that a test may change."""
    shutil.copytree(str(finished.path), tmp_path / "run")
    return RunFolder(UPath(tmp_path / "run"))


STRANGER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ovr_ray", "ray", "torchvision", "timm"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import json, torch
model = torch.jit.load(sys.argv[1])
images = torch.load(sys.argv[2])
print(json.dumps({"labels": model.labels, "thresholds": model.thresholds.tolist(),
                  "probabilities": model(images).tolist(), "decisions": model.predict(images).tolist()}))
"""


def test_a_process_that_has_only_torch_can_use_the_joint_model(finished: RunFolder, tmp_path: Path) -> None:
    batch = random_images(size=(90, 110))
    torch.save(batch, tmp_path / "images.pt")
    command = [sys.executable, "-c", STRANGER, str(finished.joint_model), str(tmp_path / "images.pt")]
    answer = json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    joint, _ = load_torchscript(finished.joint_model.read_bytes())
    assert answer["labels"] == ["crack", "inactive"]
    assert np.allclose(answer["probabilities"], joint(batch).detach(), atol=1e-4)
    assert answer["decisions"] == joint.predict(batch).tolist()


def test_the_joint_model_says_what_it_was_made_with(finished: RunFolder) -> None:
    _, metadata = load_torchscript(finished.joint_model.read_bytes())
    assert metadata.versions["torch"] == torch.__version__.partition("+")[0]
    assert metadata.data_fingerprint == finished.made_with().data_fingerprint != ""
    assert metadata.recipe | {"storage": ""} == finished.recipe().dump() | {"storage": ""}  # the fixture copied the run
    assert metadata.trained_on == ("train",)
    assert metadata.refinement == {}
    for task, winner in finished.winners().items():
        assert metadata.metrics[task] == winner.metrics
        assert metadata.winners[task] == f"{winner.trial}, epoch {winner.epoch}"
    assert metadata.thresholds == [winner.threshold for winner in finished.winners().values()]


def test_a_winner_is_picked_by_hand(run: RunFolder) -> None:
    other = list(run.trial("crack", 1).checkpoints())[-1]
    epoch = int(other.name[-4:])
    model = ovr_ray.combine(run, {"crack": f"crack-0001@{epoch}"})
    assert model.metadata.winners["crack"] == f"crack-0001, epoch {epoch}"
    assert run.winners()["crack"].checkpoint == str(other.relative_to(run.path))


def test_one_task_can_be_combined_alone(run: RunFolder) -> None:
    assert ovr_ray.combine(run, tasks=["inactive"]).metadata.labels == ["inactive"]
    assert list(run.winners()) == ["inactive"]


def test_an_incomplete_checkpoint_never_wins(run: RunFolder) -> None:
    winner = run.winners()["crack"].checkpoint
    weights = run.path / winner / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-1000])
    ovr_ray.combine(run)
    assert run.winners()["crack"].checkpoint != winner


def test_without_its_validation_images_a_run_is_not_combined(run: RunFolder, cells: Path, tmp_path: Path) -> None:
    recipe, before = run.path / "recipe.yaml", run.joint_model.read_bytes()
    recipe.write_text(recipe.read_text().replace(f"images: {cells}", f"images: {tmp_path}"))
    with pytest.raises(BadInput, match=f"{tmp_path}: holds none of the run's 80 images[\\s\\S]*--images DIR"):
        ovr_ray.combine(run)
    (tmp_path / "images").mkdir()
    for name in run.split().filename:
        (tmp_path / name).write_text("no image")
    with pytest.raises(BadInput, match=f"{tmp_path}: none of the run's validation images can be read"):
        ovr_ray.combine(run)
    assert run.joint_model.read_bytes() == before


def test_images_that_were_moved_are_named_and_the_recipe_of_the_run_stays(
    run: RunFolder, cells: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(cells, moved)
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(cells), "/gone"))
    before = recipe.read_text()
    model = ovr_ray.combine(run, refinement=Refinement(flip_average=True), images=str(moved))
    assert recipe.read_text() == before
    assert model.recipe().data.images == str(moved)
    assert ovr_ray.evaluate(run)["images"] == 16


def test_a_model_of_another_name_replaces_no_other_file(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "winners.json").write_text("precious")
    before = run.winners()
    ovr_ray.combine(run, tasks=["crack"], output=str(tmp_path / "x.pt"))
    ovr_ray.combine(run, output=str(tmp_path / "x.pt"))  # its own files are replaced
    assert (tmp_path / "winners.json").read_text() == "precious"
    assert list(json.loads((tmp_path / "x.winners.json").read_text())) == ["crack", "inactive"]
    assert run.winners() == before


@pytest.mark.parametrize("name", ["x.pt", "x.winners.json", "x.onnx"])
def test_a_file_of_somebody_else_is_kept(name: str, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(BadInput, match=f"{name}: is there already"):
        ovr_ray.combine(run, output=str(tmp_path / "x.pt"), formats=["onnx"])
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {name}
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.ONNX"])
def test_an_output_with_the_suffix_of_another_format_is_refused(name: str, run: RunFolder, tmp_path: Path) -> None:
    form = name.partition(".")[2].lower()
    with pytest.raises(BadInput, match=f"-> --output model.pt --format {form} writes model.pt and model.{form}"):
        ovr_ray.combine(run, output=str(tmp_path / name))


def best_f1(run: RunFolder, task: str) -> float:
    """Compute the winner's F1 again: a hardly trained network's F1 depends on the last digits of its logits."""
    recipe, split, winner = run.recipe(), run.split(), read_winners(run)[task]
    names = split.filename[split.part == "val"]
    labels = read_labels(recipe.data, recipe.tasks, with_split=False).named(names).labels[task].to_numpy()
    with torch.inference_mode():
        logits = load_sub_model(winner.checkpoint, winner.card)(validation_images(recipe.data, names.tolist())[0])
    probability = logits.sigmoid().numpy()
    return f1_at(choose_threshold(labels, probability))(labels, probability)


def test_combine_refines_and_records_the_scores_of_each_step(finished: RunFolder, tmp_path: Path) -> None:
    before = (finished.path / "winners.json").read_text()
    model = ovr_ray.combine(finished, output=str(tmp_path / "joint.pt"), refinement=ALL)
    refined = json.loads((tmp_path / "winners.json").read_text())
    assert (finished.path / "winners.json").read_text() == before
    for task, winner in finished.winners().items():
        ensemble = model.metadata.refinement[task]
        assert refined[task]["members"] == ensemble.members
        assert ensemble.members[0] == f"{winner.trial}@{winner.epoch}"
        assert len({member.partition("@")[0] for member in ensemble.members}) == 2
        steps = ensemble.validation
        assert steps is not None
        assert list(steps) == ["best checkpoint", "mean of 2 checkpoints", "mean of four flips", "platt"]
        assert list(refined[task]["validation"]) == list(steps)
        assert steps["best checkpoint"].f1 == pytest.approx(best_f1(finished, task))
    joint, _ = load_torchscript((tmp_path / "joint.pt").read_bytes())
    assert joint.thresholds.tolist() == pytest.approx([refined[task]["threshold"] for task in ("crack", "inactive")])


@pytest.mark.slow
def test_combine_writes_every_format_that_is_asked_for(finished: RunFolder, tmp_path: Path) -> None:
    model = ovr_ray.combine(finished, output=str(tmp_path / "model.pt"), formats=["pt2"])
    assert model.file == UPath(tmp_path / "model.pt")
    assert (tmp_path / "model.pt2").exists()
