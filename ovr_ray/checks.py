"""Checks of a recipe and its data, made before any trial starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product

import pandas as pd

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import LabelTable, read_facts, read_labels, reviewed
from ovr_ray.model import size_fault, weights_fault
from ovr_ray.recipe import Data, Recipe
from ovr_ray.storage import location


def check(recipe: Recipe, images: bool = False) -> LabelTable:
    """Check labels, backbones, their weights and, if ``images`` is set, that every image can be decoded.

    Returns
    -------
    LabelTable
        Labels of images that are to be skipped are unknown in it. If the images were read, it has notes on them.

    Raises
    ------
    BadInput
        Carries all faults.
    """
    recipe, faults, table = recipe.resolved(), [], None
    try:
        table = read_labels(recipe.data, recipe.tasks)
    except BadInput as error:
        faults += error.faults
    try:
        location(recipe.storage)
    except BadInput as error:
        faults += error.faults
    faults += _backbone_faults(recipe)
    if images and table is not None:
        try:
            table = reviewed(table, _facts(recipe.data, table), recipe.data)
        except BadInput as error:
            faults += error.faults
    if faults or table is None:
        raise BadInput(faults)
    return table


def _backbone_faults(recipe: Recipe) -> Iterator[Fault]:
    """Check each combination once, however many tasks have it, because weights may have to be downloaded."""
    asked: dict[tuple[str, int, str | None], str] = {}
    for name, task in recipe.tasks.items():
        sizes = {size or recipe.data.image_size for size in task.options("image_size")}
        for combination in product(task.options("backbone"), sorted(sizes), task.options("weights")):
            asked.setdefault(combination, name)
    faults: dict[Fault, str] = {}
    for (backbone, size, weights), name in asked.items():
        fault = size_fault(backbone, size) or weights_fault(backbone, size, weights)
        if fault:
            faults.setdefault(fault, name)
    for fault, name in faults.items():
        yield replace(fault, where=f"tasks.{name}: {fault.where}")


def _facts(data: Data, table: LabelTable) -> pd.DataFrame:
    files = data.images + "/" + table.files
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter's lock while it decodes
        return pd.DataFrame(list(pool.map(partial(read_facts, data=data), files)))
