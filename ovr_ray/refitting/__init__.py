"""A refit: the winners trained again on train and validation, as folds that predict the images that they hold out."""

from ovr_ray.refitting.run import refit

__all__ = ["refit"]
