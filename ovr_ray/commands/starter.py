"""Write a starter recipe for a label file: its columns and counts, and a search space that suits most tasks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import chain, count

import pandas as pd
import yaml

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import SUFFIXES, as_numbers, headerless, read_table, separators, stamps
from ovr_ray.recipe import absolute, collides, plain
from ovr_ray.storage import location

TEMPLATE = """\
# Written by `ovr-ray init {labels}`. Every field there is: jobs/recipes/reference.yaml
name: {name}
data:
  labels: {labels}
  images: {images}
  separator: {separator}
  filename: {filename}
  image_size: 224
  color: gray # gray | rgb
tasks:
{tasks}
search: {{max_epochs: 30}}
storage: runs
"""

TASK = """\
  {name}: # {positives} of {count} images ({share:.1%}) are positive{rest}
    column: {column}
    trials: 20
    space:
      backbone: {{choice: [resnet18, resnet34, efficientnet_b3]}} # no model hub in reach? [efficientnet_lite0]
      lr: {{loguniform: [1.0e-5, 3.0e-3]}}
      weight_decay: {{loguniform: [1.0e-5, 1.0e-2]}}
      unfreeze_epoch: {{choice: [0, 3]}} # 3: the head alone is trained in the first two epochs
"""


@dataclass(frozen=True)
class _Found:
    """The columns that a recipe needs; the column of file names is None if there is none."""

    table: pd.DataFrame
    separator: str
    filename: str | None
    labels: list[str]


def starter_recipe(labels: str, images: str | None = None) -> str:
    """Return a recipe for a label file, as YAML.

    Raises
    ------
    BadInput
        If the file cannot be read, no column names images, or none holds 0 and 1.
    """
    folder = images or str(location(labels).parent)
    found = _read(absolute(labels), absolute(folder))
    faults = []
    if found.filename is None:
        faults.append(Fault(labels, "no column names image files", f"such names end in {', '.join(SUFFIXES)}"))
    if not found.labels:
        faults.append(Fault(labels, "no column holds 0 and 1", "a label is a column of 1 for yes and 0 for no"))
    if twice := [name for name, times in Counter(found.table.columns).items() if faults and times > 1]:
        problem = f"has columns of the same name: {', '.join(map(repr, twice))}"
        faults.append(Fault(labels, problem, "give every column a name of its own"))
    if faults or found.filename is None:
        raise BadInput(faults)
    names = dict[str, str]()
    for column in found.labels:
        name = plain(column) or "label"
        numbered = (f"{name[:36]}-{number}" for number in count(2))
        names[next(free for free in chain([name], numbered) if not collides(free, names))] = column
    return TEMPLATE.format(
        name=_quoted(plain(location(absolute(labels)).parent.name) or "run"),
        labels=_quoted(labels),
        images=_quoted(folder),
        separator=_quoted(found.separator),
        filename=_quoted(found.filename),
        tasks="".join(_task(name, column, as_numbers(found.table[column])) for name, column in names.items()).rstrip(),
    )


def _read(labels: str, folder: str) -> _Found:
    """Read a label file with the first separator that gives names and labels, or else with the most likely one."""
    likely, refused = None, None
    for separator in separators(labels):
        try:
            found = _columns(read_table(labels, separator), separator, folder)
            if found.filename and stamps(folder, [found.filename]):
                raise BadInput(headerless(labels, found.filename))
        except BadInput as error:  # with another separator rows have more cells than the header
            refused = refused or error
            continue
        if found.filename and found.labels:
            return found
        likely = likely or found
    if refused or likely is None:
        raise refused or BadInput(Fault(labels, "has no rows"))
    return likely


def _columns(table: pd.DataFrame, separator: str, folder: str) -> _Found:
    alone = [name for name, times in Counter(table.columns).items() if times == 1]
    named = [name for name in alone if table[name].str.strip().str.lower().str.endswith(SUFFIXES).mean() > 0.5]
    if not named:
        first = {name: table[name].head(100).unique() for name in alone}
        named = [name for name, cells in first.items() if len(stamps(folder, cells)) > len(cells) / 2]
    labels = [name for name in alone if set(as_numbers(table[name])[table[name].str.strip() != ""]) == {0, 1}]
    return _Found(table, separator, next(iter(named), None), [name for name in labels if name not in named[:1]])


def _task(name: str, column: str, cells: pd.Series) -> str:
    positives, known = int((cells == 1).sum()), int(cells.notna().sum())
    rest = f", {len(cells) - known} not known" if known < len(cells) else ""
    quoted = {"name": _quoted(name), "column": _quoted(column)}
    return TASK.format(positives=positives, count=known, share=positives / known, rest=rest, **quoted)


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, allow_unicode=True, default_style='"', width=math.inf).strip()
