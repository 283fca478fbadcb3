"""What to run: data, tasks, spaces, budget, resources.

``jobs/recipes/reference.yaml`` shows every field with a comment.
"""

from ovr_ray.recipe.config import Choice, Config, Domain, LogUniform, RandInt, Uniform, absolute, is_anchored
from ovr_ray.recipe.reading import extended, load, parse
from ovr_ray.recipe.sections import (
    Augment,
    Checkpoints,
    ColumnSplit,
    Data,
    PrecisionGoal,
    RandomSplit,
    RecallGoal,
    Recipe,
    Resources,
    Search,
    Task,
    ThresholdGoal,
    Tracker,
)

__all__ = [
    "Augment",
    "Checkpoints",
    "Choice",
    "ColumnSplit",
    "Config",
    "Data",
    "Domain",
    "LogUniform",
    "PrecisionGoal",
    "RandInt",
    "RandomSplit",
    "RecallGoal",
    "Recipe",
    "Resources",
    "Search",
    "Task",
    "ThresholdGoal",
    "Tracker",
    "Uniform",
    "absolute",
    "extended",
    "is_anchored",
    "load",
    "parse",
]
