"""A run folder as one web page: the trials, the winners, their scores and their mistakes."""

from ovr_ray.reporting.page import report

__all__ = ["report"]
