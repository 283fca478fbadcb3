"""Score a joint model against labels: per task the counts, the ten metrics, and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import LabelTable, read_labels
from ovr_ray.model import Confusion, average_precision, f1_at, interval
from ovr_ray.recipe import Data, Recipe, Split, Task
from ovr_ray.results.predict import SavedModel, predict
from ovr_ray.runs import Metrics, RunFolder, TaskScore, metrics_beside, predictions_beside
from ovr_ray.storage import write_whole


def evaluate(
    model: SavedModel, labels: str | None = None, images: str | None = None, output: str | None = None
) -> dict[str, Any]:
    """Score a joint model and write ``metrics.json``; for the run's own images also ``predictions.csv`` beside it.

    Parameters
    ----------
    model : SavedModel
    labels : str, optional
        Label file with the columns of the model's recipe; default: the test split of the run that made the model.
    images : str, optional
        Folder that its filenames are relative to; default: the folder of ``labels``.
    output : str, optional
        File of the metrics; default: ``metrics.json`` beside the model.

    Returns
    -------
    dict
        The content of ``metrics.json``: ``part``, the split (``test``; ``val`` if the run has no test split; ``all``
        for given labels); ``images``; ``average_f1``; ``average_precision``; and per task ``threshold``, ``images``,
        ``positives``, ``prevalence``, the confusion counts and ten metrics at the threshold, ``f1_interval``,
        ``average_precision`` and its interval. ``validation`` has the same for the validation split, on which
        thresholds were chosen, unless the sub-models were trained on it, as those of a refit are. ``file`` is the path
        of the metrics.
    """
    data, tasks, table = _truth(model, labels, images)
    predicted = predict(model, table.files.tolist(), data.images)
    readable = (predicted.error == "").to_numpy()
    if not readable.all() and data.on_bad_image == "error":
        bad = "\n".join(f"    {row.filename}: {row.error}" for row in predicted[~readable].itertuples())
        raise BadInput(Fault("data.images", f"{(~readable).sum()} images cannot be decoded:\n{bad}"))
    answers = _beside_truth(predicted, table, list(tasks))
    split: Literal["val", "test"] = "test" if (answers.part == "test").any() else "val"
    scored = answers[answers.part == split]
    scores = _scores(scored, tasks, model.metadata.thresholds)
    metrics = Metrics(
        model=str(model.file),
        model_digest=model.digest,
        labels=data.labels,
        split=split if labels is None else "all",
        images=int((scored.error == "").sum()),
        average_f1=_mean(score.f1 for score in scores.values()),
        average_precision=_mean(score.average_precision for score in scores.values()),
        tasks=scores,
    )
    file = UPath(output) if output else metrics_beside(model.file)
    if labels is None:
        validation = answers[answers.part == "val"]
        if len(validation):
            metrics = metrics.model_copy(update={"validation": _scores(validation, tasks, model.metadata.thresholds)})
        write_whole(predictions_beside(file), answers.to_csv(sep=";", index=False, float_format="%.9g"))
    write_whole(file, metrics.to_json())
    return metrics.model_dump(by_alias=True, exclude_unset=True) | {"file": str(file)}


def _truth(model: SavedModel, labels: str | None, images: str | None) -> tuple[Data, dict[str, Task], LabelTable]:
    recipe = model.recipe()
    tasks = {name: recipe.tasks[name] for name in model.metadata.labels}
    if labels is not None:
        folder = images or str(UPath(labels).parent)
        data = recipe.data.model_copy(update={"labels": labels, "images": folder, "limit": None, "group": None})
        return data, tasks, read_labels(data, tasks, with_split=False)
    if model.run is None:
        remedy = "give --labels CSV --images DIR, or the run folder"
        raise BadInput(Fault(str(model.file), "lies in no run folder, so there is no test split", remedy))
    return recipe.data, tasks, _unseen(recipe, tasks, model.run, model.metadata.trained_on)


def _unseen(recipe: Recipe, tasks: dict[str, Task], run: RunFolder, seen: Sequence[Split]) -> LabelTable:
    """Return the splits that no sub-model was trained on: test, and validation unless the model is a refit's."""
    split = run.split()
    unseen = split[~split.part.isin(seen)].reset_index(drop=True)
    if unseen.empty:
        problem = "its split has no test images, and the model was trained on all others"
        raise BadInput(Fault(str(run.path), problem, "give --labels CSV --images DIR"))
    data = recipe.data.model_copy(update={"limit": None})
    table = read_labels(data, tasks, with_split=False).named(unseen.filename)
    return replace(table, splits=unseen.part)


def _beside_truth(predicted: pd.DataFrame, table: LabelTable, tasks: list[str]) -> pd.DataFrame:
    """Return one row per image: split, error, and per task the label (0, 1 or empty) and the probability."""
    answers = pd.DataFrame({"filename": table.files, "part": table.splits, "error": predicted.error})
    for task in tasks:
        answers[task] = table.labels[task].astype("Int64")
        answers[f"{task}_probability"] = predicted[f"{task}_probability"]
    return answers


def _scores(answers: pd.DataFrame, tasks: Iterable[str], thresholds: list[float]) -> dict[str, TaskScore]:
    scores = {}
    for task, threshold in zip(tasks, thresholds, strict=True):
        truth = answers[task].to_numpy(np.float32, na_value=np.nan)
        scores[task] = _score(truth, answers[f"{task}_probability"].to_numpy(), threshold)
    return scores


def _score(truth: np.ndarray, probability: np.ndarray, threshold: float) -> TaskScore:
    known = np.isfinite(truth) & np.isfinite(probability)  # there is a label, and the image was read
    truth, probability = truth[known], probability[known]
    confusion = Confusion.of(truth, probability >= np.float32(threshold))
    scored: dict[str, Any] = {"f1_interval": None, "average_precision": None, "average_precision_interval": None}
    if truth.any():
        scored["average_precision"] = average_precision(truth, probability)
        if len(truth) > 1:
            scored["f1_interval"] = interval(f1_at(threshold), truth, probability)
            scored["average_precision_interval"] = interval(average_precision, truth, probability)
    return TaskScore(
        threshold=threshold,
        images=len(truth),
        positives=int(truth.sum()),
        prevalence=float(truth.mean()) if len(truth) else None,
        **confusion.counts(),
        **confusion.metrics() | ({} if truth.any() else {"f1": None}),
        **scored,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
