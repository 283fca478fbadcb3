"""One-vs-rest image classification on Ray: a search per label, all at once, and one TorchScript model at the end.

>>> import ovr_ray
>>> run = ovr_ray.tune("recipe.yaml")
>>> model = ovr_ray.combine(run)
>>> ovr_ray.evaluate(model)["average_f1"]
"""

from typing import Any

__version__ = "0.1.0"

__all__ = [
    "check",
    "combine",
    "evaluate",
    "init",
    "predict",
    "predict_parts",
    "prepare",
    "preview",
    "refit",
    "report",
    "run",
    "status",
    "submit",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Verbs are imported when they are first used: torch and ray take seconds."""
    if name in __all__:
        from ovr_ray import verbs

        return getattr(verbs, name)
    raise AttributeError(f"module 'ovr_ray' has no attribute {name!r}")
