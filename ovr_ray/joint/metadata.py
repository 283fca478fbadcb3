"""What a joint model's file says of itself, as a type."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ovr_ray.recipe import Split
from ovr_ray.runs import EnsembleRecord, MadeWith


class JointMetadata(MadeWith):
    """The metadata of a joint model (:data:`~ovr_ray.runs.METADATA`)."""

    labels: list[str]
    """Tasks, in the order of the output's columns."""
    thresholds: list[float]
    """Probability from which each task's answer is yes."""
    winners: dict[str, str]
    """Task -> what its answer is made of, in words."""
    metrics: dict[str, dict[str, Any]]
    """Task -> metrics of its winner; see :class:`~ovr_ray.runs.WinnerRecord`."""
    recipe: dict[str, Any]
    """The recipe of the run, as plain YAML types."""
    refinement: dict[str, EnsembleRecord] = Field(default_factory=dict)
    """Task -> its ensemble, where it is more than one checkpoint."""
    trained_on: tuple[Split, ...] = ("train",)
    """Splits that the sub-models have seen; models of older versions do not say so."""
    torchscript: str = ""
    """SHA-256 of the TorchScript file that an ONNX or pt2 file was written with."""
