"""The arithmetic of a network in training: bf16, TF32 or float32."""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import nn

from ovr_ray.model import SubModel
from ovr_ray.recipe import Precision


def resolved(precision: Precision, device: torch.device) -> Precision:
    """Return what ``auto`` means on a device: bf16 if its hardware has it, else fp32. Others are returned as they are.

    Elsewhere torch emulates bf16: the results are right, but a CPU takes longer than with float32.
    """
    match precision:
        case "auto":
            return "bf16" if _has_bf16(device) else "fp32"
        case "bf16" | "tf32" | "fp32":
            return precision
        case _:
            assert_never(precision)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    """Return whether this processor multiplies bf16. Those with AMX have these instructions of AVX-512 as well."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.cpu._is_avx512_bf16_supported()  # torch 2.8 has nothing public


def allow_tf32(precision: Precision) -> None:
    """Allow or forbid TF32 in this process.

    It is set at every epoch: another trial may have run in this process, and torch allows TF32 in convolutions by
    default.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def keep_float32(sub_model: SubModel, device: torch.device) -> None:
    """Let autocast leave the head alone, and on the CPU depthwise convolutions.

    A head in bf16 would round logits to 8 bits. The backward pass of depthwise convolutions in bf16 is slow on CPUs.

    The classes of these layers are changed, not the layers: names and tensors stay, and so do copies of the network.
    """
    kept = [sub_model.head()]
    if device.type == "cpu":
        convolutions = [module for module in sub_model.modules() if isinstance(module, nn.Conv2d)]
        kept += [module for module in convolutions if module.groups == module.in_channels > 1]
    for module in kept:
        kind = type(module)
        module.__class__ = type(f"{kind.__name__}InFloat32", (_InFloat32, kind), {})


class _InFloat32(nn.Module):
    """Beside a layer's class: its forward pass, in float32 whatever autocast says."""

    def forward(self, values: torch.Tensor) -> Any:
        with torch.autocast(values.device.type, enabled=False):
            return super().forward(values.float())
