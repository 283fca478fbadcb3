"""The search of all tasks at once on Ray Tune."""

from ovr_ray.search.ledger import Ledger, Trial
from ovr_ray.search.progress import read_ledger, status
from ovr_ray.search.rules import rungs
from ovr_ray.search.run import tune
from ovr_ray.search.space import TaskSpace
from ovr_ray.search.trackers import Ready, Tracker

__all__ = ["Ledger", "Ready", "TaskSpace", "Tracker", "Trial", "read_ledger", "rungs", "status", "tune"]
