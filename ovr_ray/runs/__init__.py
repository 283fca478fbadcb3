"""A run folder: its files, its records, and the clock of who works in it."""

from ovr_ray.runs.clock import Clock
from ovr_ray.runs.folder import RunFolder, joint_model_in, metrics_beside, predictions_beside, write_winners
from ovr_ray.runs.records import (
    CalibrationRecord,
    EnsembleRecord,
    Interval,
    MadeWith,
    Metrics,
    Record,
    RefitRecord,
    Scores,
    Status,
    TaskScore,
    TrialRecord,
    WholeConfig,
    WinnerRecord,
)
from ovr_ray.runs.trial_folder import CheckpointFiles, FoldFolder, FoundTrial, RefitFolder, TrialFolder, trial_name

__all__ = [
    "CalibrationRecord",
    "CheckpointFiles",
    "Clock",
    "EnsembleRecord",
    "FoldFolder",
    "FoundTrial",
    "Interval",
    "MadeWith",
    "Metrics",
    "Record",
    "RefitFolder",
    "RefitRecord",
    "RunFolder",
    "Scores",
    "Status",
    "TaskScore",
    "TrialFolder",
    "TrialRecord",
    "WholeConfig",
    "WinnerRecord",
    "joint_model_in",
    "metrics_beside",
    "predictions_beside",
    "trial_name",
    "write_winners",
]
