from __future__ import annotations

import pytest
import torch

from ovr_ray.joint import Ensemble, JointModel
from ovr_ray.model import SubModel
from tests.support import BACKBONE, random_images, random_sub_model


@pytest.fixture
def members() -> list[SubModel]:
    """Return two sub-models of one task, whose networks see images of different sizes."""
    return [random_sub_model(BACKBONE, 64), random_sub_model(BACKBONE, 48)]


@torch.inference_mode()
def test_an_ensemble_is_the_mean_over_members_and_flips(members: list[SubModel]) -> None:
    batch = random_images(size=(64, 64))
    flips = [batch, batch.flip(3), batch.flip(2), batch.flip(2).flip(3)]
    mean = torch.stack([member(view) for member in members for view in flips]).mean(0)
    assert torch.allclose(Ensemble(members, True, 2.0, -1.0)(batch), 2 * mean - 1, atol=1e-4)
    assert torch.allclose(Ensemble(members[:1])(batch), members[0](batch))


@torch.inference_mode()
def test_with_flips_an_image_and_its_mirror_image_get_the_same_answer(members: list[SubModel]) -> None:
    ensemble, batch = Ensemble(members, flip_average=True), random_images(size=(64, 64))
    assert torch.allclose(ensemble(batch), ensemble(batch.flip(3)), atol=1e-4)
    assert not torch.allclose(members[0](batch), members[0](batch.flip(3)), atol=1e-4)


@torch.inference_mode()
def test_a_joint_model_answers_every_task_as_its_sub_model_does(members: list[SubModel]) -> None:
    joint = JointModel(["a", "b"], [Ensemble(members), members[1]], [0.3, 0.5]).eval()
    batch = random_images()
    expected = torch.stack([sub_model(batch).sigmoid() for sub_model in (Ensemble(members), members[1])], 1)
    assert torch.allclose(joint(batch), expected, atol=1e-5)
    assert torch.equal(joint.predict(batch), joint(batch) >= torch.tensor([0.3, 0.5]))


def test_equal_preprocessing_is_done_once(members: list[SubModel]) -> None:
    seen: list[torch.Size] = []
    for member in members:
        member.register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    JointModel(["a", "b"], members, [0.5, 0.5]).eval()(random_images())
    assert seen == [(4, 1, 64, 64)] * 2


@pytest.mark.parametrize("shape", [(1, 50, 70), (4, 2, 50, 70)])
def test_what_is_no_batch_of_gray_or_colour_images_is_refused(shape: tuple[int, ...], members: list[SubModel]) -> None:
    joint = JointModel(["a"], members[:1], [0.5]).eval()
    with pytest.raises(ValueError, match="images must be N x 1 x H x W or N x 3 x H x W"):
        joint(torch.zeros(shape, dtype=torch.uint8))
