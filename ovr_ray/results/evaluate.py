"""A joint model against labels: per task the counts, the ten metrics, and how sure one can be of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import LabelTable, read_labels
from ovr_ray.model import Confusion, average_precision, f1_at, interval
from ovr_ray.recipe import Data, Recipe, Task
from ovr_ray.results.predict import Model, predict
from ovr_ray.run_folder import RunFolder, write_whole

PREDICTIONS = "predictions.csv"
"""What the joint model says of every validation and test image, or test image of a refit, beside the truth."""


def evaluate(
    model: Model, labels: str | None = None, images: str | None = None, output: str | None = None
) -> dict[str, Any]:
    """Score a joint model and write ``metrics.json``; of the run's own images also ``predictions.csv`` beside it.

    Parameters
    ----------
    model : Model
    labels : str, optional
        Label file with the columns of the model's recipe; default: the test part of the run that made the model.
    images : str, optional
        What its filenames are relative to; default: the folder of ``labels``.
    output : str, optional
        Where the metrics go; default: ``metrics.json`` beside the model.

    Returns
    -------
    dict
        What was written: ``part`` (``test``; ``val`` where the run has no test part; ``all`` of given labels),
        ``images``, ``average_f1``, and per task ``threshold, images, positives, prevalence``, the confusion counts and
        ten metrics at the threshold, ``f1_interval``, ``average_precision`` and its interval.
        ``validation`` has the same of the run's validation part, where thresholds were chosen, unless the model was
        trained on that, too, as a refit's is.
    """
    data, tasks, table = _truth(model, labels, images)
    predicted = predict(model, table.files.tolist(), data.images)
    readable = (predicted.error == "").to_numpy()
    if not readable.all() and data.on_bad_image == "error":
        bad = "\n".join(f"    {row.filename}: {row.error}" for row in predicted[~readable].itertuples())
        raise BadInput(Fault("data.images", f"{(~readable).sum()} images cannot be decoded:\n{bad}"))
    answers = _beside_truth(predicted, table, list(tasks))
    part = "test" if (answers.part == "test").any() else "val"
    scored = answers[answers.part == part]
    scores = _scores(scored, tasks, model.metadata["thresholds"])
    result = {
        "model": str(model.file),
        "model_digest": model.digest,
        "labels": data.labels,
        "part": part if labels is None else "all",
        "images": int((scored.error == "").sum()),
        "average_f1": float(np.mean([score["f1"] for score in scores.values()])),
        "average_precision": float(np.mean([score["average_precision"] for score in scores.values()])),
        "tasks": scores,
    }
    file = UPath(output) if output else model.file.with_name("metrics.json")
    if labels is None:
        if (answers.part == "val").any():
            result["validation"] = _scores(answers[answers.part == "val"], tasks, model.metadata["thresholds"])
        write_whole(file.with_name(PREDICTIONS), answers.to_csv(sep=";", index=False, float_format="%.9g"))
    write_whole(file, json.dumps(result, indent=1))
    return result | {"file": str(file)}


def table_of(result: dict[str, Any]) -> Table:
    """For people: a row a task."""
    note = "AP: average precision; in brackets 95 % bootstrap intervals over images"
    if result["part"] == "val":
        note += "\nthere is no test part: these images chose the winners and their thresholds, which flatters"
    title = f"{result['images']} images, {result['part']} part"
    table = Table(title=title, caption=note, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for column in ("task", "positives", "F1", "AP"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for task, score in result["tasks"].items():
        positives = f"{score['positives']}/{score['images']} ({score['prevalence']:.0%})"
        table.add_row(task, positives, _with_interval(score, "f1"), _with_interval(score, "average_precision"))
    table.add_row(
        "average", "", f"{result['average_f1']:.3f}{' ' * 15}", f"{result['average_precision']:.3f}{' ' * 15}"
    )
    return table


def _with_interval(score: dict[str, Any], name: str) -> str:
    low, high = score[f"{name}_interval"]
    return f"{score[name]:.3f} [{low:.3f}, {high:.3f}]"


def _truth(model: Model, labels: str | None, images: str | None) -> tuple[Data, dict[str, Task], LabelTable]:
    recipe = model.recipe()
    tasks = {name: recipe.tasks[name] for name in model.metadata["labels"]}
    if labels is not None:
        folder = images or str(UPath(labels).parent)
        data = recipe.data.model_copy(update={"labels": labels, "images": folder, "limit": None, "group": None})
        return data, tasks, read_labels(data, tasks, split_too=False)
    if model.run is None:
        remedy = "give --labels CSV --images DIR, or the run folder"
        raise BadInput(Fault(str(model.file), "lies in no run folder, so there is no test part to evaluate on", remedy))
    seen = model.metadata.get("trained_on", ["train"])  # older models do not tell
    return recipe.data, tasks, _unseen_parts(recipe, tasks, model.run, seen)


def _unseen_parts(recipe: Recipe, tasks: dict[str, Task], run: RunFolder, seen: list[str]) -> LabelTable:
    """What no sub-model was trained on: test, and validation, unless it is a refit's."""
    split = run.split()
    unseen = split[~split.part.isin(seen)].reset_index(drop=True)
    if unseen.empty:
        problem = "has no test part, and the model was trained on all the rest"
        raise BadInput(Fault(str(run.file("split.csv")), problem, "give --labels CSV --images DIR"))
    data = recipe.data.model_copy(update={"limit": None})
    table = read_labels(data, tasks, split_too=False).named(unseen.filename)
    return replace(table, parts=unseen.part)


def _beside_truth(predicted: pd.DataFrame, table: LabelTable, tasks: list[str]) -> pd.DataFrame:
    """A row an image: part, error, and per task the label (0, 1 or empty) and the probability."""
    answers = pd.DataFrame({"filename": table.files, "part": table.parts, "error": predicted.error})
    for task in tasks:
        answers[task] = table.labels[task].astype("Int64")
        answers[f"{task}_probability"] = predicted[f"{task}_probability"]
    return answers


def _scores(answers: pd.DataFrame, tasks: Iterable[str], thresholds: list[float]) -> dict[str, dict[str, Any]]:
    scores = {}
    for task, threshold in zip(tasks, thresholds, strict=True):
        truth = answers[task].to_numpy(np.float32, na_value=np.nan)
        scores[task] = _score(truth, answers[f"{task}_probability"].to_numpy(), threshold)
    return scores


def _score(truth: np.ndarray, probability: np.ndarray, threshold: float) -> dict[str, Any]:
    counts = np.isfinite(truth) & np.isfinite(probability)  # the row counts for the task, and its image was read
    truth, probability = truth[counts], probability[counts]
    confusion = Confusion.of(truth, probability >= np.float32(threshold))
    return {
        "threshold": threshold,
        "images": len(truth),
        "positives": int(truth.sum()),
        "prevalence": float(truth.mean()),
        **confusion.counts(),
        **confusion.metrics(),
        "f1_interval": interval(f1_at(threshold), truth, probability),
        "average_precision": average_precision(truth, probability),
        "average_precision_interval": interval(average_precision, truth, probability),
    }
