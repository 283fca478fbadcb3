"""The joint model: winners, ensembles, and one file that answers all tasks."""

from ovr_ray.joint.combine import combine
from ovr_ray.joint.engine import Engine, ModelFiles, load_torchscript, read_metadata
from ovr_ray.joint.export import parity, write_exported, write_torchscript
from ovr_ray.joint.metadata import JointMetadata
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.joint.refine import PLAIN, Refinement
from ovr_ray.joint.winners import Winner, choose, read_winners, refuse_unknown
from ovr_ray.runs import METADATA

__all__ = [
    "METADATA",
    "PLAIN",
    "Engine",
    "Ensemble",
    "JointMetadata",
    "JointModel",
    "ModelFiles",
    "Refinement",
    "Winner",
    "choose",
    "combine",
    "load_torchscript",
    "parity",
    "read_metadata",
    "read_winners",
    "refuse_unknown",
    "write_exported",
    "write_torchscript",
]
