from __future__ import annotations

import pytest
import torch
from torch import nn

from ovr_ray.model import SubModel, build, prepared
from tests.support import BACKBONE


def sub_model(channels: int = 1, stored_size: int = 48, image_size: int = 32) -> SubModel:
    mean, std = [0.5] * channels, [0.2] * channels
    return SubModel(build(BACKBONE, image_size), stored_size, image_size, channels, mean, std).eval()


def images(channels: int = 1, size: tuple[int, int] = (60, 40)) -> torch.Tensor:
    return torch.randint(0, 256, (3, channels, *size), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [1, 3])
def test_any_size_and_colour_gives_one_logit_per_image(channels: int, given: int) -> None:
    assert sub_model(channels)(images(given)).shape == (3,)


def test_uint8_and_float_in_0_to_1_are_the_same_image() -> None:
    network, pixels = sub_model(), images()
    assert torch.allclose(network(pixels), network(pixels.float() / 255), atol=1e-6)


def test_rgb_into_a_gray_sub_model_is_luminance() -> None:
    rgb = images(3, (48, 48))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    expected = (rgb * weights).sum(1, keepdim=True).round() / 255
    assert torch.allclose(prepared(rgb, 1, 48), expected, atol=1e-6)


def test_an_image_is_resized_as_training_stored_it_and_then_as_the_network_wants() -> None:
    seen: list[torch.Size] = []
    network = sub_model()
    network.network.register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    network(images())
    assert seen == [(3, 3, 32, 32)]


def test_what_is_no_batch_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="N x 1 x H x W"):
        sub_model()(torch.zeros(3, 2, 8, 8))


def test_it_scripts_and_answers_the_same() -> None:
    network, pixels = sub_model(), images()
    assert torch.allclose(torch.jit.script(network)(pixels), network(pixels), atol=1e-5)


def statistics(network: SubModel) -> list[torch.Tensor]:
    """Return copies of the means that batch norms keep."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]


def test_a_frozen_body_learns_nothing_and_keeps_its_statistics() -> None:
    network = sub_model().train()
    network.set_frozen(True)
    assert not any(module.training for module in network.network.modules())
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["network.fc.weight", "network.fc.bias"]
    before = statistics(network)
    assert before
    network(images())
    after = statistics(network)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    network.train()
    network.set_frozen(False)
    assert all(parameter.requires_grad for parameter in network.parameters())
