"""What the files of a label table say after all of them were read: faults, and notes that stop nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, assert_never

import pandas as pd

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images.labels import SHOWN, SPLITS, LabelTable, counted, empty_split_faults, listed
from ovr_ray.recipe import Data

NAMED: Final = 200
"""Most bad images that a fault names."""

DARK: Final = 1 / 8
"""Share of the range below which all values of all images lie if a recipe probably has to say what is white."""


def reviewed(table: LabelTable, facts: pd.DataFrame, data: Data) -> LabelTable:
    """Return a label table in which bad images count for no task, with notes on its images.

    Parameters
    ----------
    table : LabelTable
    facts : DataFrame
        The :class:`~ovr_ray.images.decoding.Facts` of each row's file.
    data : Data

    Raises
    ------
    BadInput
        If there are bad images and ``on_bad_image`` is ``error``, if a task has no image of one class left, or if an
        image occurs more than once and ``duplicates`` is ``error``.
    """
    bad, faults = facts.error[facts.error != ""], list[Fault]()
    if len(bad) and data.on_bad_image == "error":
        faults.append(_bad_images(table, bad))
    table, notes = table.without(bad.index), list(_dark_images(facts, data))
    faults += empty_split_faults(table, data)
    match data.duplicates:
        case "error":
            faults += _duplicates(table, facts.digest, data)
        case "warn" | "together":
            notes += _duplicates(table, facts.digest, data)
        case _:
            assert_never(data.duplicates)
    if faults:
        raise BadInput(faults)
    return replace(table, notes=tuple(notes))


def _bad_images(table: LabelTable, bad: pd.Series) -> Fault:
    """Return a fault that names the bad images; of very many, the first ones and how often each reason occurs."""
    lines = [f"    {file}: {reason}" for file, reason in zip(table.files[bad.index], bad, strict=True)]
    if len(lines) > NAMED:
        counts = Counter(reason.partition(":")[0] for reason in bad).most_common(SHOWN)
        reasons = ", ".join(f"{reason!r} ({count})" for reason, count in counts)
        lines[NAMED:] = [f"    and {len(lines) - NAMED} more; most frequent reasons of all: {reasons}"]
    problem = f"{len(bad)} of {len(table.files)} images cannot be decoded:\n" + "\n".join(lines)
    return Fault("data.images", problem, "repair or remove them, or set data.on_bad_image: skip")


def _dark_images(facts: pd.DataFrame, data: Data) -> Iterator[Fault]:
    """Yield a note if all gray images of more than 8 bits use a small part of their range only."""
    deep = facts[facts.white > 0]
    if data.white is None and len(deep) and (deep.peak < DARK * deep.white).all():
        brightest = deep.nlargest(1, "peak").iloc[0]
        peak, bits = brightest.peak, max(8, int(brightest.peak).bit_length())
        images = f"{len(deep)} gray images of more than 8 bits"
        problem = f"the largest value of {images} is {peak}, where {brightest.white} is white"
        yield Fault("data.white", problem, f"say what is white, such as data.white: {(1 << bits) - 1} ({bits} bits)")


def _duplicates(table: LabelTable, digests: pd.Series, data: Data) -> Iterator[Fault]:
    """Yield a fault if images occur more than once; where they stay together, only if their labels or splits differ."""
    same = digests[(digests != b"") & digests.duplicated(keep=False)]
    image, together = pd.Series(pd.factorize(same)[0], same.index), data.duplicates == "together"
    differs = table.labels.assign(part=table.splits).loc[image.index].groupby(image).nunique().gt(1)
    torn, contrary = differs["part"], differs[table.labels.columns].any(axis=1)
    told = [number for number in differs.index if torn[number] or contrary[number] or not together]
    if not told:
        return
    lines = []
    for number in sorted(told, key=lambda number: (not contrary[number], not torn[number]))[:SHOWN]:
        rows = image.index[image == number]
        inside = " and ".join(split for split in SPLITS if split in set(table.splits[rows]))
        said = [f"in {inside}", *(f"contrary labels of {task!r}" for task in table.labels if differs[task][number])]
        lines.append(f"    {listed(map(repr, table.files[rows]), ' = ')}: {', '.join(said)}")
    if len(told) > SHOWN:
        lines.append(f"    and {len(told) - SHOWN} more")
    counts = f"{torn.sum()} of them in different splits, {contrary.sum()} with contrary labels"
    problem = f"{counted(len(told), 'image occurs', 'images occur')} more than once, {counts}:\n" + "\n".join(lines)
    remedy = "keep one file of each, with the right labels"
    alternative = "" if together else "; or set data.duplicates: together, which keeps them in one split"
    yield Fault("data.images", problem, remedy + alternative)
