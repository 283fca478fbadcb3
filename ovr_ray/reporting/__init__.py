"""A run folder as one page for people: what was searched, what won, what it is worth, where it errs."""

from ovr_ray.reporting.page import report

__all__ = ["report"]
