"""Score a joint model against labels: per task the counts, the ten metrics, and intervals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import LabelTable, read_labels, read_table, refuse_moved, separators
from ovr_ray.model import Confusion, average_precision, f1_at, interval
from ovr_ray.recipe import Data, Recipe, Split, Task
from ovr_ray.results.predict import SavedModel, predict
from ovr_ray.runs import (
    Kind,
    Metrics,
    RunFolder,
    TaskScore,
    metrics_beside,
    predictions_beside,
    refuse_foreign,
    with_images,
)
from ovr_ray.storage import location, write_whole


def evaluate(
    model: SavedModel,
    labels: str | None = None,
    images: str | None = None,
    output: str | None = None,
    tasks: Collection[str] = (),
    separator: str | None = None,
) -> dict[str, Any]:
    """Score a joint model and write ``metrics.json``; for the run's own images also ``predictions.csv`` beside it.

    Parameters
    ----------
    model : SavedModel
    labels : str, optional
        Label file with the columns of the model's recipe; default: the test split of the run that made the model.
    images : str, optional
        Folder that its filenames are relative to; default: the folder of ``labels``, or of the run's images.
    output : str, optional
        File of the metrics; default: ``metrics.json`` beside the model, ``x.metrics.json`` beside ``x.pt``. The
        predictions are named after it.
    tasks : collection of str
        Score only these tasks; for given ``labels``. Default: all of the model.
    separator : str, optional
        What separates the columns of ``labels``, one character; default: as in the model's recipe.

    Returns
    -------
    dict
        The content of ``metrics.json``: ``part``, the split (``test``; ``val`` if the run has no test split; ``all``
        for given labels); ``images``; ``average_f1``; ``average_precision``; and per task ``threshold``, ``images``,
        ``positives``, ``prevalence``, the confusion counts and ten metrics at the threshold, ``f1_interval``,
        ``average_precision`` and its interval. ``validation`` has the same for the validation split, on which
        thresholds were chosen, unless the sub-models were trained on it, as those of a refit are. ``file`` is the path
        of the metrics.

    Raises
    ------
    BadInput
        If labels or images are wrong, or a file would be replaced that this program did not write.
    """
    file = location(output) if output else metrics_beside(model.file)
    outputs: dict[UPath, Kind] = {file: "metrics"}
    refuse_foreign(outputs | ({predictions_beside(file): "predictions"} if labels is None else {}))
    data, scored_tasks, table = _truth(model, labels, images, tasks, separator)
    predicted = predict(model, table.files.tolist(), data.images)
    readable = (predicted.error == "").to_numpy()
    if not readable.all() and data.on_bad_image == "error":
        bad = "\n".join(f"    {row.filename}: {row.error}" for row in predicted[~readable].itertuples())
        raise BadInput(Fault("data.images", f"{(~readable).sum()} images cannot be decoded:\n{bad}"))
    answers = _beside_truth(predicted, table, list(scored_tasks))
    split: Literal["val", "test"] = "test" if (answers.part == "test").any() else "val"
    scored = answers[answers.part == split]
    every = dict(zip(model.metadata.labels, model.metadata.thresholds, strict=True))
    thresholds = {task: every[task] for task in scored_tasks}
    scores = _scores(scored, thresholds)
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
    if labels is None:
        validation = answers[answers.part == "val"]
        if len(validation):
            metrics = metrics.model_copy(update={"validation": _scores(validation, thresholds)})
        write_whole(predictions_beside(file), answers.to_csv(sep=";", index=False, float_format="%.9g"))
    write_whole(file, metrics.to_json())
    return metrics.model_dump(by_alias=True, exclude_unset=True) | {"file": str(file)}


def _truth(
    model: SavedModel, labels: str | None, images: str | None, only: Collection[str], separator: str | None
) -> tuple[Data, dict[str, Task], LabelTable]:
    recipe, separator = model.recipe(), "\t" if separator == r"\t" else separator
    tasks = {name: recipe.tasks[name] for name in model.metadata.labels if not only or name in only}
    if faults := list(_option_faults(model, labels, only, separator)):
        raise BadInput(faults)
    if labels is not None:
        given = {"labels": labels, "images": images or str(location(labels).parent)}
        data = recipe.data.model_copy(update={**given, "limit": None, "group": None})
        data = data.model_copy(update={"separator": separator}) if separator else data
        _refuse_absent_columns(data, tasks)
        return data, tasks, read_labels(data, tasks, with_split=False)
    if model.run is None:
        remedy = "give --labels CSV --images DIR, or the run folder"
        raise BadInput(Fault(str(model.file), "lies in no run folder, so there is no test split", remedy))
    recipe = with_images(recipe, images) if images else recipe
    return recipe.data, tasks, _unseen(recipe, tasks, model.run, model.metadata.trained_on)


def _option_faults(
    model: SavedModel, labels: str | None, only: Collection[str], separator: str | None
) -> Iterator[Fault]:
    if labels is None and (only or separator):
        where = "--task" if only else "--separator"
        yield Fault(where, "is for other labels than the run's own", "give --labels CSV, too")
    if separator is not None and len(separator) != 1:
        yield Fault(f"--separator {separator!r}", "is not one character")
    for task in only:
        if task not in model.metadata.labels:
            yield Fault(f"--task {task!r}", "the model has no such task", f"tasks: {', '.join(model.metadata.labels)}")


def _refuse_absent_columns(data: Data, tasks: Mapping[str, Task]) -> None:
    """Say which option of the command line is for a label file that is unlike the run's."""
    try:
        columns = list(read_table(data.labels, data.separator).columns)
    except BadInput:
        if data.separator in separators(data.labels):
            raise
        columns = []
    lacking = {name: task.column for name, task in tasks.items() if task.column not in columns}
    if lacking and len(columns) < 2:
        remedy = f"say what separates them, for example --separator {separators(data.labels)[0]!r}"
        raise BadInput(Fault(data.labels, f"has no columns that are separated by {data.separator!r}", remedy))
    there = [name for name in tasks if name not in lacking]
    if lacking and there:
        problem = f"has no column {', '.join(map(repr, lacking.values()))}; its columns: {', '.join(columns)}"
        raise BadInput(Fault(data.labels, problem, f"score the others: {' '.join(f'--task {name}' for name in there)}"))


def _unseen(recipe: Recipe, tasks: dict[str, Task], run: RunFolder, seen: Sequence[Split]) -> LabelTable:
    """Return the splits that no sub-model was trained on: test, and validation unless the model is a refit's."""
    split = run.split()
    unseen = split[~split.part.isin(seen)].reset_index(drop=True)
    if unseen.empty:
        problem = "its split has no test images, and the model was trained on all others"
        raise BadInput(Fault(str(run.path), problem, "give --labels CSV --images DIR"))
    data = recipe.data.model_copy(update={"limit": None})
    refuse_moved(data.images, unseen.filename.tolist())
    table = read_labels(data, tasks, with_split=False).named(unseen.filename)
    return replace(table, splits=unseen.part)


def _beside_truth(predicted: pd.DataFrame, table: LabelTable, tasks: list[str]) -> pd.DataFrame:
    """Return one row per image: split, error, and per task the label (0, 1 or empty) and the probability."""
    answers = pd.DataFrame({"filename": table.files, "part": table.splits, "error": predicted.error})
    for task in tasks:
        answers[task] = table.labels[task].astype("Int64")
        answers[f"{task}_probability"] = predicted[f"{task}_probability"]
    return answers


def _scores(answers: pd.DataFrame, thresholds: Mapping[str, float]) -> dict[str, TaskScore]:
    scores = {}
    for task, threshold in thresholds.items():
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
