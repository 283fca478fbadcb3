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
from ovr_ray.errors import BadInput, RunFailed
from ovr_ray.joint import JointModel, load_torchscript, write_torchscript
from ovr_ray.model import SubModel, build, read_card
from ovr_ray.model.backbones import head
from ovr_ray.run import RunFolder
from tests.support import BACKBONE


def sub_model(backbone: str, image_size: int, stored_size: int = 64, channels: int = 1) -> SubModel:
    """Random, its head so large that different images have different probabilities."""
    mean, std = [0.5] * channels, [0.2] * channels
    made = SubModel(build(backbone, image_size), stored_size, image_size, channels, mean, std).eval()
    with torch.no_grad():
        logits, last = made(images(channels)), head(made.network)
        for parameter, value in ((last.weight, last.weight), (last.bias, last.bias - logits.mean())):  # type: ignore[operator]
            parameter.copy_(value / logits.std())  # type: ignore[operator,union-attr]
    return made


@pytest.fixture
def mixed() -> JointModel:
    """Different backbones, sizes and colours."""
    parts = [
        sub_model(BACKBONE, 64),
        sub_model("resnet18", 48),
        sub_model(BACKBONE, 32, stored_size=32, channels=3),
    ]
    return JointModel(["a", "b", "c"], parts, [0.3, 0.5, 0.7]).eval()


def images(channels: int = 1, size: tuple[int, int] = (50, 70), count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8)


@pytest.fixture
def file(mixed: JointModel, tmp_path: Path) -> Path:
    write_torchscript(mixed, UPath(tmp_path / "joint.pt"), {"labels": ["a", "b", "c"]}, list(images()))
    return tmp_path / "joint.pt"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (300, 300)])
def test_the_file_answers_as_the_sub_models_do(
    channels: int, size: tuple[int, int], mixed: JointModel, file: Path
) -> None:
    joint, metadata = load_torchscript(file.read_bytes())
    batch = images(channels, size)
    with torch.inference_mode():
        expected = torch.stack([part(batch).sigmoid() for part in mixed.sub_models], 1)
        for given in (batch, batch.float() / 255):
            assert torch.allclose(joint(given), expected, atol=1e-4)
            assert torch.equal(joint.predict(given), joint(given) >= joint.thresholds)
    assert joint.labels == metadata["labels"] == ["a", "b", "c"]
    assert joint.thresholds.tolist() == pytest.approx([0.3, 0.5, 0.7])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_batch_may_be_of_any_size(count: int, file: Path) -> None:
    joint, _ = load_torchscript(file.read_bytes())
    answer = joint(images(count=count))
    assert answer.shape == (count, 3)
    assert answer.dtype == torch.float32
    assert joint.predict(images(count=count)).dtype == torch.bool


def test_equal_preprocessing_is_done_once() -> None:
    alike = JointModel(["a", "b"], [sub_model(BACKBONE, 64), sub_model(BACKBONE, 48)], [0.5, 0.5])
    seen: list[torch.Size] = []
    for part in alike.sub_models:
        part.register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    alike.eval()(images())
    assert seen == [(4, 1, 64, 64)] * 2


def test_a_file_that_answers_otherwise_is_not_written(mixed: JointModel, tmp_path: Path) -> None:
    parts = list(mixed.sub_models)
    parts[0].forward = lambda images: torch.full((len(images),), 9.0)  # type: ignore[method-assign,union-attr]
    with pytest.raises((RunFailed, RuntimeError)):
        write_torchscript(mixed, UPath(tmp_path / "bad.pt"), {}, list(images()))
    assert not (tmp_path / "bad.pt").exists()


def test_what_is_no_joint_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a joint model"):
        load_torchscript(b"not a model")


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


def test_a_process_that_has_torch_alone_can_use_the_joint_model(finished: RunFolder, tmp_path: Path) -> None:
    batch = images(size=(90, 110))
    torch.save(batch, tmp_path / "images.pt")
    command = [sys.executable, "-c", STRANGER, str((finished.path / "joint.pt")), str(tmp_path / "images.pt")]
    answer = json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    joint, _ = load_torchscript((finished.path / "joint.pt").read_bytes())
    assert answer["labels"] == ["crack", "inactive"]
    assert np.allclose(answer["probabilities"], joint(batch).detach(), atol=1e-4)
    assert answer["decisions"] == joint.predict(batch).tolist()


def test_the_winner_is_the_best_checkpoint_there_is(finished: RunFolder) -> None:
    metric = f"val_{finished.recipe().search.metric}"
    for task, winner in json.loads((finished.path / "winners.json").read_text()).items():
        cards = [read_card(c) for trial in finished.trials() for c in trial.checkpoints()]
        best = max(card.metrics[metric] for card in cards if card and card.task == task)
        assert winner["metrics"][metric] == best


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(str(finished.path), tmp_path / "run")
    return RunFolder(UPath(tmp_path / "run"))


def test_winners_are_picked_by_hand(run: RunFolder) -> None:
    other = run.trial("crack", 1).checkpoints()[-1]
    epoch = int(other.name[-4:])
    for pick in ("1", "crack-0001", f"crack-0001@{epoch}", str(other)):
        model = ovr_ray.combine(run, {"crack": pick})
        assert model.metadata["winners"]["crack"].startswith("crack-0001")
    assert json.loads((run.path / "winners.json").read_text())["crack"]["epoch"] == epoch


@pytest.mark.parametrize("pick", ["99", "crack-0000@77", "inactive-0000", "/nowhere"])
def test_a_pick_that_is_no_checkpoint_of_the_task_is_told(pick: str, run: RunFolder) -> None:
    with pytest.raises(BadInput, match="no whole checkpoint"):
        ovr_ray.combine(run, {"crack": pick})


def test_a_task_without_a_checkpoint_is_named_with_why_its_trials_failed(run: RunFolder) -> None:
    for trial in run.trials():
        if trial.record()["task"] == "inactive":
            trial.write_record(trial.record() | {"status": "failed", "reason": "CUDA out of memory"})
    with pytest.raises(
        RunFailed, match=r"no trial of task 'inactive' came to its end[\s\S]*inactive-0002: failed: CUDA out of memory"
    ) as caught:
        ovr_ray.combine(run)
    assert caught.value.exit_code == 1


def test_one_task_can_be_combined_alone(run: RunFolder) -> None:
    assert ovr_ray.combine(run, tasks=["inactive"]).metadata["labels"] == ["inactive"]


def test_a_half_written_checkpoint_never_wins(run: RunFolder) -> None:
    winner = json.loads((run.path / "winners.json").read_text())["crack"]["checkpoint"]
    weights = run.path / winner / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-1000])
    ovr_ray.combine(run)
    assert json.loads((run.path / "winners.json").read_text())["crack"]["checkpoint"] != winner


def test_the_joint_model_tells_what_it_was_made_with(finished: RunFolder) -> None:
    _, metadata = load_torchscript((finished.path / "joint.pt").read_bytes())
    assert metadata["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert metadata["recipe"]["name"] == "tiny"
    assert set(metadata["metrics"]) == {"crack", "inactive"}
