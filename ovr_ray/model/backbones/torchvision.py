"""torchvision's classification networks, by their names there.

Importing torchvision imports torch's compiler: two seconds that a process without its networks does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from ovr_ray.errors import BadInput, Fault
from ovr_ray.model.backbones.source import Backbone, StateDict

HEADS = ("fc", "classifier", "heads", "head")
"""Attributes under which torchvision's networks keep their head, or the block that ends in it."""

AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Attributes of the auxiliary heads of Inception and GoogLeNet."""


class Torchvision:
    """torchvision's classification networks; see :class:`~ovr_ray.model.backbones.source.Source`."""

    def names(self) -> Sequence[str]:
        """Return torchvision's own names."""
        from torchvision import models

        return models.list_models(module=models)

    def build(self, name: str, image_size: int) -> Backbone:
        """Return the network; only vision transformers depend on the image size, by their position embeddings."""
        from torchvision import models

        options: dict[str, Any] = {}
        if name.startswith("vit_"):
            options["image_size"] = image_size
        if name in ("inception_v3", "googlenet"):
            options["init_weights"] = False  # their own initialisation takes a minute
        network = models.get_model(name, weights=None, **options)
        head = _head(network)
        if name.startswith("squeezenet"):  # the ReLU behind its convolution would keep a logit from being negative
            block, _, index = head.rpartition(".")
            network.set_submodule(f"{block}.{int(index) + 1}", nn.Identity())
        if not hasattr(network, "aux_logits"):
            return Backbone(network, head)
        for auxiliary in AUXILIARY:
            setattr(network, auxiliary, None)
        network.aux_logits = False
        return Backbone(network, head, tuple(f"{auxiliary}." for auxiliary in AUXILIARY), _FirstOutput)

    def weights(self, name: str, weights: str) -> StateDict:
        """Return weights that torchvision has, or downloads."""
        from torchvision import models

        where = f"backbone {name!r}, weights {weights!r}"
        enum = models.get_model_weights(name)
        if weights != "DEFAULT" and weights not in enum.__members__:
            has = ", ".join(["DEFAULT", *enum.__members__])
            remedy = f"it has {has}; or give the path of a state-dict file, or null"
            raise BadInput(Fault(where, "torchvision knows no such weights", remedy))
        entry = enum[weights]
        try:
            return entry.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            place = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
            problem = f"cannot be downloaded ({getattr(error, 'reason', error)})"
            remedy = (
                f"put {entry.url} there as {place}, or write weights: /path/to/a/state_dict.pth (or null, or a backbone"
                " that needs no download: efficientnet_lite0)"
            )
            raise BadInput(Fault(where, problem, remedy)) from None


def _head(network: nn.Module) -> str:
    """Return the path of the last linear or convolutional layer below the attribute that holds the head."""
    (attribute,) = [name for name in HEADS if hasattr(network, name)]
    block = getattr(network, attribute)
    layers = [name for name, module in block.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return f"{attribute}.{layers[-1]}".removesuffix(".")


class _FirstOutput(nn.Module):
    """Return the first output: Inception and GoogLeNet return a tuple when they are scripted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.network.transform_input = False  # type: ignore[assignment]  # it would undo ImageNet's normalisation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.network(images)[0]
        return self.network(images)
