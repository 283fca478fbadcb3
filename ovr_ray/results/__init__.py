"""What a joint model is worth and what it says."""

from ovr_ray.results.evaluate import evaluate, table_of
from ovr_ray.results.predict import Model, answers_of, find_images, predict

__all__ = ["Model", "answers_of", "evaluate", "find_images", "predict", "table_of"]
