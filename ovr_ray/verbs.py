"""The verbs as Python functions: what ``import ovr_ray`` gives, and what the command line calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ovr_ray import checks, cluster, joint, results, search, starter, submission
from ovr_ray.images import LabelTable
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


def tune(recipe: Runnable, tasks: Collection[str] = ()) -> RunFolder:
    """Search every task at once, or go on with an interrupted search; see :func:`ovr_ray.search.tune`."""
    return search.tune(_recipe(recipe), tasks)


def status(run: RunFolder | str | Path) -> pd.DataFrame:
    """How far every task of a run is; see :meth:`ovr_ray.search.ledger.Ledger.counts`."""
    return search.read_ledger(_run(run)).counts()


def combine(
    run: RunFolder | str | Path,
    picks: Mapping[str, str] | None = None,
    tasks: Collection[str] = (),
    output: str | None = None,
    refinement: joint.Refinement = joint.PLAIN,
    formats: Collection[joint.Format] = (),
) -> results.Model:
    """Choose the winners and write the joint model; see :func:`ovr_ray.joint.combine`."""
    return results.Model(str(joint.combine(_run(run), picks, tasks, output, refinement, formats)))


def evaluate(
    model: Scorable, labels: str | None = None, images: str | None = None, output: str | None = None
) -> dict[str, Any]:
    """Score a joint model and write ``metrics.json``; see :func:`ovr_ray.results.evaluate`."""
    return results.evaluate(_model(model), labels, images, output)


def predict(model: Scorable, paths: Sequence[str]) -> pd.DataFrame:
    """Probabilities and decisions for image files and folders; see :func:`ovr_ray.results.predict`."""
    return results.predict(_model(model), results.find_images(paths))


def run(recipe: Runnable, tasks: Collection[str] = ()) -> dict[str, Any]:
    """Tune, combine and evaluate; returns the metrics."""
    with cluster.connected():
        return evaluate(combine(tune(recipe, tasks), tasks=tasks))


def submit(
    recipe: Runnable, address: str, tasks: Collection[str] = (), home: str | Path = "runs", install: bool = False
) -> Path:
    """Tune, combine and evaluate as jobs on a cluster; see :func:`ovr_ray.submission.submit`."""
    return submission.submit(_recipe(recipe), address, tasks, Path(home), install)


def _run(run: RunFolder | str | Path) -> RunFolder:
    return run if isinstance(run, RunFolder) else RunFolder.open(run)


def _recipe(recipe: Runnable) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load(recipe)


def _model(model: Scorable) -> results.Model:
    if isinstance(model, results.Model):
        return model
    return results.Model(str(model.path if isinstance(model, RunFolder) else model))
