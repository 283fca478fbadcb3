"""The verbs as Python functions: ``import ovr_ray`` offers them, and the command line calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL.PngImagePlugin import PngInfo
from upath import UPath

from ovr_ray import checks, cluster, joint, refitting, results, search
from ovr_ray.choices import FOLDS, ExportFormat, Source, TableFormat
from ovr_ray.commands import starter, submission
from ovr_ray.images import ImageSet, LabelTable, contact_sheet, read_labels
from ovr_ray.images import load as load_images
from ovr_ray.recipe import Recipe, load
from ovr_ray.runs import SOFTWARE, RunFolder, refuse_foreign
from ovr_ray.storage import location

Runnable = Recipe | str | Path
"""A recipe, or the path of one."""

Scorable = results.SavedModel | RunFolder | str | Path
"""A joint model, its file, or a run folder that has one."""


def init(labels: str, images: str | None = None) -> str:
    """Return a starter recipe for a label file, as YAML.

    Parameters
    ----------
    labels : str
        CSV with a column of file names, and a column of 0/1 per label.
    images : str, optional
        Folder that the file names are relative to; default: the CSV's folder.

    Raises
    ------
    BadInput
        If no column names images, or none holds 0 and 1.
    """
    return starter.starter_recipe(labels, images)


def check(recipe: Runnable) -> LabelTable:
    """Check a recipe, its labels, backbones, weights and every image; train nothing.

    Returns
    -------
    LabelTable
        Files, labels and splits, and notes on the images.

    Raises
    ------
    BadInput
        Carries every fault found.
    """
    return checks.check(_recipe(recipe), images=True)


def prepare(recipe: Runnable) -> ImageSet:
    """Decode a recipe's images into shards, where later runs find them.

    Raises
    ------
    BadInput
        If labels or images are wrong.
    RunFailed
        If the storage is full.
    """
    recipe = _recipe(recipe)
    cluster.refuse_relative_paths(recipe)
    table = read_labels(recipe.resolved().data, recipe.tasks)
    with cluster.connected():
        cluster.refuse_relative_paths(recipe)
        recipe = recipe.resolved()
        return load_images(table, recipe.data, recipe.storage, memory=0)[0]


def preview(recipe: Runnable, output: str | Path = "preview.png") -> None:
    """Write a contact sheet as PNG: samples of every combination of labels, as stored and as augmented."""
    recipe = _recipe(recipe).resolved()
    refuse_foreign({location(output): "picture"})
    software = PngInfo()
    software.add_text("Software", SOFTWARE)
    contact_sheet(recipe, read_labels(recipe.data, recipe.tasks)).save(output, pnginfo=software)


def tune(recipe: Runnable, tasks: Collection[str] = (), warm_start: Collection[str | Path] = ()) -> RunFolder:
    """Search every task at once, or resume an interrupted search.

    Parameters
    ----------
    recipe : Recipe, str or Path
    tasks : collection of str
        Search only these tasks; default: all.
    warm_start : collection of str or Path
        Earlier runs whose trials the search knows from the start: ``RUN`` or ``RUN:TASK=OTHER``.

    Raises
    ------
    BadInput, RunFailed, Interrupted
        See :func:`ovr_ray.search.tune`.
    """
    return search.tune(_recipe(recipe), tasks, warm_start=warm_start)


def status(run: RunFolder | str | Path) -> pd.DataFrame:
    """Return how far every task of a run is: one row per task, see :meth:`ovr_ray.search.Ledger.counts`."""
    return search.read_ledger(_run(run)).counts()


def refit(
    run: RunFolder | str | Path,
    folds: int = FOLDS,
    workers: int = 1,
    tasks: Collection[str] = (),
    image_size: int | None = None,
    images: str | None = None,
) -> RunFolder:
    """Train the winners again as folds over train and validation, or resume that.

    Parameters and errors are those of :func:`ovr_ray.refitting.refit`.
    """
    return refitting.refit(_run(run), folds, workers, tasks, image_size, images=images)


def combine(
    run: RunFolder | str | Path,
    picks: Mapping[str, str] | None = None,
    tasks: Collection[str] = (),
    output: str | None = None,
    refinement: joint.Refinement = joint.PLAIN,
    formats: Collection[ExportFormat] = (),
    source: Source = "search",
    images: str | None = None,
) -> results.SavedModel:
    """Choose the winners, or take their refit, and write the joint model.

    Parameters and errors are those of :func:`ovr_ray.joint.combine`.
    """
    return results.SavedModel(str(joint.combine(_run(run), picks, tasks, output, refinement, formats, source, images)))


def evaluate(
    model: Scorable,
    labels: str | None = None,
    images: str | None = None,
    output: str | None = None,
    tasks: Collection[str] = (),
    separator: str | None = None,
) -> dict[str, Any]:
    """Score a joint model on images that no trial has seen, and write ``metrics.json``.

    Parameters, the returned metrics and errors are those of :func:`ovr_ray.results.evaluate`.
    """
    return results.evaluate(_model(model), labels, images, output, tasks, separator)


def predict(model: Scorable, paths: Sequence[str], images: str | None = None) -> pd.DataFrame:
    """Return probabilities and decisions for image files, folders, and tables that name files.

    Parameters
    ----------
    model : SavedModel, RunFolder, str or Path
    paths : sequence of str
        Paths or URIs.
    images : str, optional
        Folder that a table's names are relative to; default: the table's folder.

    Returns
    -------
    DataFrame
        One row per image; see :func:`ovr_ray.results.predict`.

    Raises
    ------
    BadInput
        Names every path that does not exist, and every folder or table without images.
    """
    model = _model(model)
    return results.predict(model, results.find_images(paths, model.recipe(), images))


def predict_parts(
    model: Scorable,
    paths: Sequence[str],
    output: str,
    images: str | None = None,
    form: TableFormat = "parquet",
    part_size: int = results.PART,
) -> results.Parts:
    """Predict more images than fit in memory, into a folder of parts; resume if some parts exist.

    See :func:`predict` for ``paths`` and ``images``, and :func:`ovr_ray.results.predict_parts` for the rest.
    """
    model = _model(model)
    found = results.find_images(paths, model.recipe(), images)
    return results.predict_parts(model, found, output, form, part_size)


def report(run: RunFolder | str | Path, images: str | None = None) -> UPath:
    """Write ``report.html`` into a run folder, also while a search runs; return its path.

    ``images`` is the folder in which the run's images are now, if it is not where the recipe says.
    """
    from ovr_ray import reporting  # plotly is needed by this verb only

    return reporting.report(_run(run), images)


def run(recipe: Runnable, tasks: Collection[str] = (), warm_start: Collection[str | Path] = ()) -> dict[str, Any]:
    """Tune, combine, evaluate and report; return the metrics, and the path of the report under ``report``.

    Parameters and errors are those of :func:`tune`.
    """
    with cluster.connected():
        folder = tune(recipe, tasks, warm_start)
        metrics = evaluate(combine(folder, tasks=tasks))
    return metrics | {"report": str(report(folder))}


def submit(
    recipe: Runnable, address: str, tasks: Collection[str] = (), home: str | Path = "runs", install: bool = False
) -> Path:
    """Tune, combine, evaluate and report as jobs on a cluster; fetch the results, and return their folder.

    Parameters and errors are those of :func:`ovr_ray.commands.submission.submit`.
    """
    return submission.submit(_recipe(recipe), address, tasks, Path(home), install)


def _run(run: RunFolder | str | Path) -> RunFolder:
    return run if isinstance(run, RunFolder) else RunFolder.open(run)


def _recipe(recipe: Runnable) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load(recipe)


def _model(model: Scorable) -> results.SavedModel:
    if isinstance(model, results.SavedModel):
        return model
    return results.SavedModel(str(model.path if isinstance(model, RunFolder) else model))
