"""Networks with one logit, by name, from several sources.

Built-in sources are torchvision and EfficientNet-Lite0. An installed package adds one by an entry point of the group
``ovr_ray.backbones`` that names a :class:`Source` (an object or a class without arguments).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from ovr_ray.errors import BadInput, Fault
from ovr_ray.model.backbones.files import read_state_dict
from ovr_ray.model.backbones.lite import LITE, Lite
from ovr_ray.model.backbones.source import Backbone, Source, StateDict
from ovr_ray.model.backbones.torchvision import Torchvision
from ovr_ray.recipe import plugins

__all__ = [
    "LITE",
    "Backbone",
    "Source",
    "StateDict",
    "build",
    "fitting",
    "hollow",
    "named_weights",
    "names",
    "read_state_dict",
    "size_fault",
]


def names() -> list[str]:
    """Return the names of all backbones."""
    return [name for source in _sources() for name in source.names()]


def build(name: str, image_size: int, weights: StateDict | None = None) -> Backbone:
    """Return a network with one logit: images, float (N, 3, image_size, image_size), to logits, (N, 1).

    Parameters
    ----------
    name : str
        One of :func:`names`.
    image_size : int
        Pixels a side of its images.
    weights : mapping of str to Tensor, optional
        Initial weights of all but the head; default: random. The head is new in any case.

    Raises
    ------
    BadInput
        If there is no such backbone, a package that it needs is missing, or the weights do not fit.
    """
    backbone = _source(name).build(name, image_size)
    network = backbone.network
    if weights is not None:
        network.load_state_dict(fitting(backbone, weights, f"backbone {name!r}"), strict=False)
    head = _with_one_output(network.get_submodule(backbone.head))
    network.set_submodule(backbone.head, head)
    network = backbone.finish(network)
    path = next(path for path, module in network.named_modules() if module is head)
    return replace(backbone, network=network, head=path)


def hollow(name: str, image_size: int) -> Backbone:
    """Return a network on the meta device: it has shapes but no weights, so that building it is fast."""
    source = _source(name)
    try:
        with torch.device("meta"):
            return source.build(name, image_size)
    except RuntimeError:  # RegNets compute with numbers while they are built
        return source.build(name, image_size)


def named_weights(name: str, weights: str) -> StateDict:
    """Return pretrained weights of a backbone by their name; raises :class:`BadInput` if they cannot be loaded."""
    return _source(name).weights(name, weights)


def size_fault(name: str, image_size: int) -> Fault | None:
    """Return what prevents such a backbone on images of this size; None if nothing does."""
    try:
        network = hollow(name, image_size).network.eval()
        network(torch.zeros(2, 3, image_size, image_size, device=next(network.parameters()).device))
    except BadInput as error:
        return error.faults[0]
    except (RuntimeError, AssertionError, ValueError) as error:
        problem = f"cannot work on images of {image_size} pixels: {str(error).splitlines()[0]}"
        return Fault(f"backbone {name!r}", problem, "choose another image_size or backbone")
    return None


def fitting(backbone: Backbone, state: StateDict, where: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the body, from weights that may have a head of any width, or none.

    Parameters
    ----------
    backbone : Backbone
        With the head of its source.
    state : mapping of str to Tensor
    where : str
        What to name in an error.

    Raises
    ------
    BadInput
        If tensors of the body are missing, or have other names or shapes.
    """
    own = backbone.network.state_dict()
    skipped = (f"{backbone.head}.", *backbone.unused)
    body = {name: value for name, value in state.items() if not name.startswith(skipped)}
    wrong = [name for name in body if name not in own or body[name].shape != own[name].shape]
    lacking = sorted(name for name in own.keys() - body.keys() if not name.startswith(skipped))
    if wrong or lacking:
        found = f"{len(wrong)} tensors do not fit ({', '.join(wrong[:3])} …)" if wrong else ""
        lost = f"{len(lacking)} are missing ({', '.join(lacking[:3])} …)" if lacking else ""
        problem = "; ".join(filter(None, [found, lost]))
        raise BadInput(Fault(where, problem, "are they of this backbone?"))
    return body


def _sources() -> Iterator[Source]:
    """Yield the built-in sources first: a package cannot replace their networks."""
    yield from (Lite(), Torchvision())
    for name in plugins.names(plugins.BACKBONES):
        source = plugins.load(plugins.BACKBONES, name)
        yield source() if isinstance(source, type) else source


def _source(name: str) -> Source:
    known: list[str] = []
    for source in _sources():
        if name in (names := source.names()):
            return source
        known += names
    close = difflib.get_close_matches(name, known, 3)
    remedy = f"close: {', '.join(close)}" if close else ""
    raise BadInput(Fault(f"backbone {name!r}", "there is no such backbone", remedy))


def _with_one_output(head: nn.Module) -> nn.Module:
    if isinstance(head, nn.Linear):
        linear = nn.Linear(head.in_features, 1)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        return linear
    if isinstance(head, nn.Conv2d):
        return nn.Conv2d(head.in_channels, 1, 1)
    raise TypeError(f"a backbone's head must be a Linear or a Conv2d, not {type(head).__name__}")
