"""The interface between this project and whoever supplies networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

StateDict = Mapping[str, Tensor]
"""Name of a tensor -> tensor, as of ``Module.state_dict()``."""


def unchanged(network: nn.Module) -> nn.Module:
    """Return the network as it is."""
    return network


@dataclass(frozen=True)
class Backbone:
    """A network, and where its head is.

    Attributes
    ----------
    network : Module
        Maps images, float (N, 3, S, S), to outputs of its head, (N, outputs).
    head : str
        Path of the head, the last layer (a Linear or a Conv2d), as ``Module.get_submodule`` takes it.
    unused : tuple of str
        Prefixes of tensors that files of weights hold and this network has no place for: auxiliary heads.
    finish : callable
        Applied to the network after its weights are loaded and its head is replaced.
    """

    network: nn.Module
    head: str
    unused: tuple[str, ...] = ()
    finish: Callable[[nn.Module], nn.Module] = unchanged


class Source(Protocol):
    """A supplier of networks. Built-in ones and those of installed packages have this interface."""

    def names(self) -> Sequence[str]:
        """Return the names of its networks, cheaply: no network is built."""
        ...

    def build(self, name: str, image_size: int) -> Backbone:
        """Return a network with random weights and any number of outputs.

        Parameters
        ----------
        name : str
            One of :meth:`names`.
        image_size : int
            Pixels a side of its images; only some networks depend on it.

        Raises
        ------
        BadInput
            If a package that it needs is not installed.
        """
        ...

    def weights(self, name: str, weights: str) -> StateDict:
        """Return pretrained weights by their name, downloading them if necessary; with a head or without.

        ``DEFAULT`` is what recipes ask for unless they say otherwise.

        Raises
        ------
        BadInput
            If there are no weights of this name, or they cannot be downloaded; says what to do.
        """
        ...
