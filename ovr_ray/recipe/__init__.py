"""What to run: data, tasks, search spaces, budgets, resources.

``jobs/recipes/reference.yaml`` shows every field with a comment.
"""

from ovr_ray.choices import (
    FOLDS,
    LEAST_IMAGE_SIZE,
    Calibration,
    Color,
    ExportFormat,
    Metric,
    Precision,
    Source,
    Split,
    TableFormat,
)
from ovr_ray.recipe import plugins
from ovr_ray.recipe.config import (
    Choice,
    Config,
    Domain,
    LogUniform,
    RandInt,
    Uniform,
    absolute,
    is_anchored,
    is_uri,
    is_weights_file,
)
from ovr_ray.recipe.loader import dumped
from ovr_ray.recipe.names import collides, plain
from ovr_ray.recipe.reading import extended, load, parse
from ovr_ray.recipe.sections import (
    BUILT_IN_TRACKERS,
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
)

__all__ = [
    "BUILT_IN_TRACKERS",
    "FOLDS",
    "LEAST_IMAGE_SIZE",
    "Augment",
    "Calibration",
    "Checkpoints",
    "Choice",
    "Color",
    "ColumnSplit",
    "Config",
    "Data",
    "Domain",
    "ExportFormat",
    "LogUniform",
    "Metric",
    "Precision",
    "PrecisionGoal",
    "RandInt",
    "RandomSplit",
    "RecallGoal",
    "Recipe",
    "Resources",
    "Search",
    "Source",
    "Split",
    "TableFormat",
    "Task",
    "ThresholdGoal",
    "Uniform",
    "absolute",
    "collides",
    "dumped",
    "extended",
    "is_anchored",
    "is_uri",
    "is_weights_file",
    "load",
    "parse",
    "plain",
    "plugins",
]
