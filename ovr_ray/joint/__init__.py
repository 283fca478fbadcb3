"""From trials to one file."""

from ovr_ray.joint.combine import combine
from ovr_ray.joint.export import METADATA, load_torchscript, write_torchscript
from ovr_ray.joint.module import JointModel
from ovr_ray.joint.winners import Winner

__all__ = ["METADATA", "JointModel", "Winner", "combine", "load_torchscript", "write_torchscript"]
