"""Every task at once on Ray Tune."""

from ovr_ray.search.run import tune

__all__ = ["tune"]
