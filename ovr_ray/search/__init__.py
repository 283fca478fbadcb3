"""Every task at once on Ray Tune."""

from ovr_ray.search.clock import Clock
from ovr_ray.search.ledger import Ledger, Trial
from ovr_ray.search.progress import read_ledger, status
from ovr_ray.search.run import tune
from ovr_ray.search.space import TaskSpace

__all__ = ["Clock", "Ledger", "TaskSpace", "Trial", "read_ledger", "status", "tune"]
