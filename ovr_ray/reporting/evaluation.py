"""The files that ``ovr-ray evaluate`` writes into a run folder, as types."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from ovr_ray.recipe import Split
from ovr_ray.runs import Metrics, RunFolder, TaskScore, damage_told, metrics_beside, predictions_beside, read_csv
from ovr_ray.storage import read_if_there


class NotEvaluated(StrEnum):
    """Why the page shows no decisions."""

    NO_MODEL = "No joint model yet. Run ovr-ray combine, ovr-ray evaluate and ovr-ray report to show its decisions."
    NO_METRICS = "joint.pt has not been evaluated. Run ovr-ray evaluate, then ovr-ray report, to show its decisions."
    OTHER_LABELS = (
        "metrics.json holds scores on other labels than the run's. "
        "Run ovr-ray evaluate without --labels, then ovr-ray report, to show the decisions."
    )
    OUTDATED = (
        "joint.pt has changed since it was evaluated. Run ovr-ray evaluate, then ovr-ray report, to show its decisions."
    )


@dataclass(frozen=True)
class Evaluation:
    """The scores and the answers of a run's joint model.

    Attributes
    ----------
    split : "test" or "val"
        The split that counts: val if the run has no test split.
    metrics : Metrics
    predictions : DataFrame
        ``predictions.csv``: filename, part (the split), error, and per task the label and the probability.
    """

    split: Split
    metrics: Metrics
    predictions: pd.DataFrame

    def scores(self, task: str) -> dict[Split, TaskScore]:
        """Return the scores of a task by split, validation first; empty if the joint model does not answer the task."""
        by_split: dict[Split, dict[str, TaskScore]] = {"val": self.metrics.validation, self.split: self.metrics.tasks}
        return {split: scores[task] for split, scores in by_split.items() if task in scores}


def read_evaluation(run: RunFolder) -> Evaluation | NotEvaluated:
    """Read the evaluation of the joint model that is in the run folder now, or return why there is none."""
    model = run.joint_model
    predictions = predictions_beside(metrics_beside(model))
    if not model.exists():
        return NotEvaluated.NO_MODEL
    text = read_if_there(metrics_beside(model))
    if text is None or not predictions.exists():
        return NotEvaluated.NO_METRICS
    with damage_told(metrics_beside(model)):
        metrics = Metrics.from_json(text)
    if metrics.split == "all":
        return NotEvaluated.OTHER_LABELS
    if metrics.model_digest != hashlib.sha256(model.read_bytes()).hexdigest():
        return NotEvaluated.OUTDATED
    columns = ["filename", "part", "error", *metrics.tasks, *(f"{task}_probability" for task in metrics.tasks)]
    types = {"filename": str, "error": str} | dict.fromkeys(columns[3:], float)
    # only an empty field is a missing value: a file may be called NA
    table = read_csv(predictions, columns, dtype=types, keep_default_na=False, na_values=[""])
    return Evaluation(metrics.split, metrics, table.fillna({"error": ""}))
