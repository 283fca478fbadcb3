"""Write a starter recipe for a label file: its columns and counts, and a search space that suits most tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import SUFFIXES, read_table

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


def starter_recipe(labels: str, images: str | None = None) -> str:
    """Return a recipe for a label file, as YAML.

    Raises
    ------
    BadInput
        If no column names images, or none holds 0 and 1.
    """
    separator = _separator(labels)
    table = read_table(labels, separator)
    twice = sorted({str(column) for column in table if list(table).count(column) > 1})
    if twice:
        problem = f"has columns of the same name: {', '.join(map(repr, twice))}"
        raise BadInput(Fault(labels, problem, "give every column a name of its own"))
    filename = next((c for c in table if table[c].str.lower().str.endswith(SUFFIXES).mean() > 0.5), None)
    binary = [c for c in table if set(table[c].str.strip()) - {""} == {"0", "1"}]
    faults = []
    if filename is None:
        faults.append(Fault(labels, "no column names image files", f"such names end in {', '.join(SUFFIXES)}"))
    if not binary:
        faults.append(Fault(labels, "no column holds 0 and 1", "a label is a column of 1 for yes and 0 for no"))
    if faults:
        raise BadInput(faults)
    return TEMPLATE.format(
        name=json.dumps(_plain(Path(labels).resolve().parent.name)),
        labels=json.dumps(labels),
        images=json.dumps(images or str(Path(labels).parent)),
        separator=json.dumps(separator),
        filename=json.dumps(filename),
        tasks="".join(_task(str(column), table[column].str.strip()) for column in binary).rstrip(),
    )


def _separator(labels: str) -> str:
    try:
        with Path(labels).open(encoding="utf-8-sig", newline="") as file:
            return csv.Sniffer().sniff(file.readline(), delimiters=";,\t|").delimiter
    except (OSError, csv.Error, UnicodeDecodeError):
        return ";"  # reading the table reports what is wrong with it


def _task(column: str, cells: pd.Series) -> str:
    positives, known = int((cells == "1").sum()), int((cells != "").sum())
    rest = f", {len(cells) - known} not known" if known < len(cells) else ""
    names = {"name": json.dumps(_plain(column)), "column": json.dumps(column)}
    return TASK.format(positives=positives, count=known, share=positives / known, rest=rest, **names)


def _plain(text: str) -> str:
    """Return a text that can be part of a path."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "-" for c in text).strip("-.")
    return kept or "run"
