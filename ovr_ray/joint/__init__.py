"""From trials to one file."""

from ovr_ray.joint import winners
from ovr_ray.joint.combine import Source, combine
from ovr_ray.joint.export import METADATA, Format, load_torchscript, write_exported, write_torchscript
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.joint.refine import PLAIN, Refinement, table_of
from ovr_ray.joint.winners import Winner

__all__ = [
    "METADATA",
    "PLAIN",
    "Ensemble",
    "Format",
    "JointModel",
    "Refinement",
    "Source",
    "Winner",
    "combine",
    "load_torchscript",
    "table_of",
    "winners",
    "write_exported",
    "write_torchscript",
]
