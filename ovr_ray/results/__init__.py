"""Use of a joint model: predict images, and score its answers."""

from ovr_ray.results.evaluate import evaluate
from ovr_ray.results.finding import find_images
from ovr_ray.results.parts import PART, Parts, predict_parts, write_table
from ovr_ray.results.predict import SavedModel, predict

__all__ = [
    "PART",
    "Parts",
    "SavedModel",
    "evaluate",
    "find_images",
    "predict",
    "predict_parts",
    "write_table",
]
