"""Training of one sub-model: the loop, its checkpoints, and the process that it runs in."""

from ovr_ray.training.device import choose_device, is_out_of_memory, keep_pages, set_up_process
from ovr_ray.training.precision import allow_tf32
from ovr_ray.training.schedule import learning_rate
from ovr_ray.training.session import Assignment, Session, Unwritable, derived_seed, storage_is_writable
from ovr_ray.training.trainer import Diverged, EpochRow, Trainer
from ovr_ray.training.worker import ALONE, Cause, EarlyEnd, Team, train

__all__ = [
    "ALONE",
    "Assignment",
    "Cause",
    "Diverged",
    "EarlyEnd",
    "EpochRow",
    "Session",
    "Team",
    "Trainer",
    "Unwritable",
    "allow_tf32",
    "choose_device",
    "derived_seed",
    "is_out_of_memory",
    "keep_pages",
    "learning_rate",
    "set_up_process",
    "storage_is_writable",
    "train",
]
