"""The verbs as Python functions: what ``import ovr_ray`` gives, and what the command line calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from upath import UPath

from ovr_ray import checks, cluster, joint, refitting, results, search, starter, submission
from ovr_ray.images import ImageSet, LabelTable, contact_sheet, read_labels
from ovr_ray.images import load as load_images
from ovr_ray.recipe import Recipe, load
from ovr_ray.run_folder import RunFolder

Runnable = Recipe | str | Path
"""A recipe, or the path of one."""

Scorable = results.Model | RunFolder | str | Path
"""A joint model, its file, or a run folder that has one."""


def init(labels: str, images: str | None = None) -> str:
    """A starter recipe, as YAML; see :func:`ovr_ray.starter.starter_recipe`."""
    return starter.starter_recipe(labels, images)


def check(recipe: Runnable) -> LabelTable:
    """Check a recipe, its labels, backbones and every image; see :func:`ovr_ray.checks.check`."""
    return checks.check(_recipe(recipe), images=True)


def prepare(recipe: Runnable) -> ImageSet:
    """Decode a recipe's images into shards, and nothing else; see :func:`ovr_ray.images.load`."""
    recipe = _recipe(recipe)
    cluster.refuse_relative_paths(recipe)
    table = read_labels(recipe.data, recipe.tasks)
    with cluster.connected():
        cluster.refuse_relative_paths(recipe)
        recipe = recipe.resolved()
        return load_images(table, recipe.data, recipe.storage, memory=0)[0]


def preview(recipe: Runnable, output: str | Path = "preview.png") -> None:
    """Write a contact sheet as PNG; see :func:`ovr_ray.images.contact_sheet`."""
    recipe = _recipe(recipe)
    contact_sheet(recipe, read_labels(recipe.data, recipe.tasks)).save(output)


def tune(recipe: Runnable, tasks: Collection[str] = (), warm_start: Collection[str | Path] = ()) -> RunFolder:
    """Search every task at once, or go on with an interrupted search; see :func:`ovr_ray.search.tune`."""
    return search.tune(_recipe(recipe), tasks, warm_start=warm_start)


def status(run: RunFolder | str | Path) -> pd.DataFrame:
    """How far every task of a run is; see :meth:`ovr_ray.search.ledger.Ledger.counts`."""
    return search.read_ledger(_run(run)).counts()


def refit(
    run: RunFolder | str | Path,
    folds: int = refitting.FOLDS,
    workers: int = 1,
    tasks: Collection[str] = (),
    image_size: int | None = None,
) -> RunFolder:
    """Train the winners again as folds over train and validation; see :func:`ovr_ray.refitting.refit`."""
    return refitting.refit(_run(run), folds, workers, tasks, image_size)


def combine(
    run: RunFolder | str | Path,
    picks: Mapping[str, str] | None = None,
    tasks: Collection[str] = (),
    output: str | None = None,
    refinement: joint.Refinement = joint.PLAIN,
    formats: Collection[joint.Format] = (),
    source: joint.Source = "search",
) -> results.Model:
    """Choose the winners, or take their refit, and write the joint model; see :func:`ovr_ray.joint.combine`."""
    return results.Model(str(joint.combine(_run(run), picks, tasks, output, refinement, formats, source)))


def evaluate(
    model: Scorable, labels: str | None = None, images: str | None = None, output: str | None = None
) -> dict[str, Any]:
    """Score a joint model and write ``metrics.json``; see :func:`ovr_ray.results.evaluate`."""
    return results.evaluate(_model(model), labels, images, output)


def predict(model: Scorable, paths: Sequence[str], images: str | None = None) -> pd.DataFrame:
    """Probabilities and decisions for image files, folders, and tables that name files; one table in memory.

    See :func:`ovr_ray.results.find_images` and :func:`ovr_ray.results.predict`.
    """
    model = _model(model)
    return results.predict(model, results.find_images(paths, model.recipe(), images))


def predict_parts(
    model: Scorable,
    paths: Sequence[str],
    output: str,
    images: str | None = None,
    form: results.Format = "parquet",
    part_size: int = results.PART,
) -> results.Parts:
    """The same for more images than fit in memory, into a folder; see :func:`ovr_ray.results.predict_parts`."""
    model = _model(model)
    found = results.find_images(paths, model.recipe(), images)
    return results.predict_parts(model, found, output, form, part_size)


def report(run: RunFolder | str | Path) -> UPath:
    """Write ``report.html`` into a run folder; see :func:`ovr_ray.reporting.report`."""
    from ovr_ray import reporting  # plotly is for this verb alone

    return reporting.report(_run(run))


def run(recipe: Runnable, tasks: Collection[str] = (), warm_start: Collection[str | Path] = ()) -> dict[str, Any]:
    """Tune, combine, evaluate and report; returns the metrics, and where the report is."""
    with cluster.connected():
        folder = tune(recipe, tasks, warm_start)
        metrics = evaluate(combine(folder, tasks=tasks))
    return metrics | {"report": str(report(folder))}


def submit(
    recipe: Runnable, address: str, tasks: Collection[str] = (), home: str | Path = "runs", install: bool = False
) -> Path:
    """Tune, combine, evaluate and report as jobs on a cluster; see :func:`ovr_ray.submission.submit`."""
    return submission.submit(_recipe(recipe), address, tasks, Path(home), install)


def _run(run: RunFolder | str | Path) -> RunFolder:
    return run if isinstance(run, RunFolder) else RunFolder.open(run)


def _recipe(recipe: Runnable) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load(recipe)


def _model(model: Scorable) -> results.Model:
    if isinstance(model, results.Model):
        return model
    return results.Model(str(model.path if isinstance(model, RunFolder) else model))
