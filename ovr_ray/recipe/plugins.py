"""Extensions from other installed packages, found by their entry points."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ovr_ray.errors import BadInput, Fault

BACKBONES = "ovr_ray.backbones"
"""Group of entry points that name a :class:`ovr_ray.model.backbones.Source`."""

TRACKERS = "ovr_ray.trackers"
"""Group of entry points that name a :class:`ovr_ray.search.Tracker`."""


def names(group: str) -> list[str]:
    """Return the names of a group's entry points; imports none of the packages."""
    return sorted(entry_points(group=group).names)


def load(group: str, name: str) -> Any:
    """Import what an entry point names.

    Raises
    ------
    BadInput
        If the package cannot be imported, or has no such object.
    """
    (entry,) = list(entry_points(group=group, name=name))[:1]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        package = entry.dist.name if entry.dist else entry.module
        problem = f"entry point {group} {name} = {entry.value} cannot be loaded: {error}"
        raise BadInput(Fault(f"package {package!r}", problem, f"update it, or pip uninstall {package}")) from None
