from __future__ import annotations

from collections.abc import Callable

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


FLOATS = torch.linspace(0, 1, 3 * 50 * 70).reshape(3, 1, 50, 70)
REFUSED = {
    "integers": (FLOATS * 255).long(),
    "int8": (FLOATS * 100).to(torch.int8),
    "booleans": FLOATS > 0.5,
    "complex numbers": FLOATS.to(torch.complex64),
    "0 to 255": FLOATS * 255,
    "standardized": FLOATS * 2 - 1,
    "a little above": FLOATS + 0.01,
    "infinite": FLOATS / 0,
    "not a number": torch.where(FLOATS == 0, torch.nan, FLOATS),
}


@pytest.fixture(scope="module", params=["Python", "TorchScript"])
def joint(request: pytest.FixtureRequest) -> Callable[[torch.Tensor], torch.Tensor]:
    model = JointModel(["a"], [random_sub_model(BACKBONE, 64)], [0.5]).eval()
    return model if request.param == "Python" else torch.jit.freeze(torch.jit.script(model))


@pytest.mark.parametrize("images", REFUSED.values(), ids=REFUSED)
def test_images_of_another_type_or_range_are_refused(
    images: torch.Tensor, joint: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    with pytest.raises((ValueError, torch.jit.Error), match=r"images must be uint8, or float in 0\.\.1 without NaN"):
        joint(images)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_every_precision_are_images_and_the_overshoot_of_a_resize_is_allowed(
    kind: torch.dtype, joint: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    images = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(4, 1, 1, 1).expand(-1, 1, 50, 70)
    assert torch.equal(joint(images.to(kind)), joint(images))
    assert torch.equal(joint(images * 1.002 - 0.001), joint(images))
