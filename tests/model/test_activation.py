from __future__ import annotations

import pytest
import torch
from torch import nn

from ovr_ray.model import Backbone, SubModel, build, class_activation


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_32", "swin_t", "mobilenet_v3_small"])
def test_channels_first_or_last_or_tokens_give_one_map_per_image(backbone: str) -> None:
    network = SubModel(build(backbone, 96), 96, 96, 1, [0.5], [0.2]).eval()
    activation = class_activation(network, torch.randint(0, 256, (2, 1, 60, 80), dtype=torch.uint8))
    assert activation.shape[0] == 2
    assert activation.shape[1] == activation.shape[2] > 1
    assert activation.min() >= 0
    assert activation.amax((1, 2)).tolist() == pytest.approx([1, 1]), "nothing reached the logit"


def test_it_shows_where_the_label_is_seen() -> None:
    bright = nn.Conv2d(3, 1, 8, stride=8, bias=False)
    nn.init.constant_(bright.weight, 1.0)
    network = nn.Sequential(bright, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 8:16, 24:32] = 255
    activation = class_activation(SubModel(Backbone(network, head="0"), 32, 32, 1, [0.0], [1.0]).eval(), images)
    expected = torch.zeros(4, 4)
    expected[1, 3] = 1
    assert torch.equal(activation[0], expected)
