"""Every task at once on Ray Tune."""

from ovr_ray.search.progress import read_ledger, status
from ovr_ray.search.run import tune

__all__ = ["read_ledger", "status", "tune"]
