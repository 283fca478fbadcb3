from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from torch import nn

from ovr_ray.model import SubModel, build
from ovr_ray.recipe import Config, Precision
from ovr_ray.training.precision import keep_float32, resolved
from tests.support import pretend_cpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IMAGES = torch.randint(0, 256, (64, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def sub_model() -> SubModel:
    """Return a network that has depthwise convolutions, some of them with timm's own padding."""
    torch.manual_seed(0)
    return SubModel(build("efficientnet_lite0", 32), 32, 32, 1, [0.5], [0.25])


def in_bf16(sub_model: SubModel, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return sub_model.eval()(images)


def computed_in(sub_model: SubModel) -> dict[str, set[torch.dtype]]:
    """Return what the head, depthwise and other convolutions return under autocast."""
    seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def note(kind: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda module, inputs, output: seen[kind].add(output.dtype))

    note("head", sub_model.head())
    for module in sub_model.modules():
        if isinstance(module, nn.Conv2d):
            note("depthwise" if module.groups > 1 else "other", module)
    in_bf16(sub_model, IMAGES[:2])
    return dict(seen)


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_a_precision_that_is_asked_for_is_used(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16 in (True, False):
        pretend_cpu(monkeypatch, avx512_bf16=has_bf16)
        assert resolved(precision, CPU) == precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32"), ({"neon": True, "bf16": True}, "fp32")],
    ids=["with bf16", "without", "of ARM"],
)
def test_auto_is_bf16_on_processors_whose_hardware_has_it(
    capabilities: dict[str, bool], expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cpu(monkeypatch, **capabilities)
    assert resolved("auto", CPU) == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_asks_an_old_torch_too(has_bf16: bool, expected: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert resolved("auto", CPU) == expected


def test_this_processor_can_be_asked() -> None:
    flags = torch.cpu._is_avx512_bf16_supported()
    assert resolved("auto", CPU) == ("bf16" if flags else "fp32")


def test_auto_is_bf16_on_gpus_whose_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert resolved("auto", CUDA) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolved("auto", CUDA) == "bf16"
    assert resolved("auto", torch.device("mps")) == "fp32"


def test_an_unknown_precision_is_refused() -> None:
    config = Config.model_construct(precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="fp8"):
        resolved(config.precision, CPU)


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "copy"])
def test_on_the_cpu_the_head_and_depthwise_convolutions_stay_in_float32(sub_model: SubModel, copied: bool) -> None:
    assert computed_in(sub_model) == {kind: {torch.bfloat16} for kind in ("head", "depthwise", "other")}
    keep_float32(sub_model, CPU)
    expected = {"head": {torch.float32}, "depthwise": {torch.float32}, "other": {torch.bfloat16}}
    assert computed_in(copy.deepcopy(sub_model) if copied else sub_model) == expected


def test_on_a_gpu_only_the_head_stays_in_float32(sub_model: SubModel) -> None:
    """The layers are chosen by the device that is named; they are run here."""
    keep_float32(sub_model, CUDA)
    assert computed_in(sub_model) == {"head": {torch.float32}, "depthwise": {torch.bfloat16}, "other": {torch.bfloat16}}


def test_logits_are_not_rounded_to_bf16(sub_model: SubModel) -> None:
    def is_rounded(logits: torch.Tensor) -> bool:
        return torch.equal(logits, logits.bfloat16().float())

    assert is_rounded(in_bf16(sub_model))
    keep_float32(sub_model, CPU)
    assert not is_rounded(in_bf16(sub_model))
    assert len(in_bf16(sub_model).unique()) == len(IMAGES)


def test_without_autocast_nothing_changes(sub_model: SubModel) -> None:
    with torch.inference_mode():
        before, names = sub_model.eval()(IMAGES), list(sub_model.state_dict())
        keep_float32(sub_model, CPU)
        assert torch.equal(sub_model(IMAGES), before)
    assert list(sub_model.state_dict()) == names


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "vit_b_32"], ids=["convolution", "linear layer"])
def test_every_kind_of_head_stays_in_float32(backbone: str) -> None:
    sub_model = SubModel(build(backbone, 32), 32, 32, 1, [0.5], [0.25])
    keep_float32(sub_model, CPU)
    assert computed_in(sub_model)["head"] == {torch.float32}
