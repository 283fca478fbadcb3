"""The winners trained again, on validation images too: as folds, each of which says what it thinks of the others'."""

from ovr_ray.refitting.run import FOLDS, refit

__all__ = ["FOLDS", "refit"]
