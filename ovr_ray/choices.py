"""Options that recipes and the command line share.

This file imports nothing but ``typing``: ``ovr-ray --help`` needs these names before pydantic or torch is loaded.
"""

from typing import Final, Literal

Optimizer = Literal["adam", "adamw", "sgd"]
NamedSchedule = Literal["constant", "cosine"]
Precision = Literal["auto", "bf16", "tf32", "fp32"]
Color = Literal["gray", "rgb"]
OnBadImage = Literal["error", "skip"]
OnDuplicates = Literal["warn", "error", "together"]
Metric = Literal["f1", "f1_at_half", "average_precision"]
Searcher = Literal["tpe", "random"]
Scheduler = Literal["asha", "halving", "none"]

Split = Literal["train", "val", "test"]
"""The three subsets of the labelled images; files call their column ``part``."""

Source = Literal["search", "refit"]
"""What a joint model is made of: the best checkpoints of a search, or the folds of a refit."""

Calibration = Literal["platt", "temperature"]
ExportFormat = Literal["onnx", "pt2"]
"""What a joint model can be written as, beside TorchScript."""

TableFormat = Literal["csv", "parquet"]

FOLDS: Final = 5
"""Folds of a refit, unless another number is asked for."""

LEAST_IMAGE_SIZE: Final = 8
"""Pixels a side that a stored image, or an image that a network sees, has at least."""
