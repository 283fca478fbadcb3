"""What a joint model is worth and what it says."""

from ovr_ray.results.evaluate import PREDICTIONS, evaluate, table_of
from ovr_ray.results.parts import PART, Format, Parts, predict_parts, write_table
from ovr_ray.results.predict import Model, answers_of, find_images, predict

__all__ = [
    "PART",
    "PREDICTIONS",
    "Format",
    "Model",
    "Parts",
    "answers_of",
    "evaluate",
    "find_images",
    "predict",
    "predict_parts",
    "table_of",
    "write_table",
]
