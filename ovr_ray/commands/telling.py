"""What the command line prints of a verb's result."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from ovr_ray.results import Parts


def tell_answers(table: pd.DataFrame, labels: list[str]) -> None:
    """A table on a terminal, CSV elsewhere."""
    from rich.console import Console

    from ovr_ray.results import answers_of

    if sys.stdout.isatty():
        Console().print(answers_of(table, labels))
    else:
        table.to_csv(sys.stdout, sep=";", index=False, float_format="%.6f")


def tell_parts(parts: Parts) -> None:
    """Where predictions went, and how many."""
    tell_unreadable(parts.unreadable, parts.images)
    already = f", {parts.already} more were there" if parts.already else ""
    typer.echo(f"{parts.folder}: {parts.images} images{already}, in {len(parts.files)} parts", err=True)


def tell_unreadable(count: int, images: int) -> None:
    """How many images could not be read, if any."""
    if count:
        typer.echo(f"{count} of {images} images could not be read; column 'error' says why", err=True)


def tell_winners(metadata: dict[str, Any]) -> None:
    """What a joint model is made of, and what each refinement gave."""
    from rich.console import Console

    from ovr_ray.joint import table_of

    for label, threshold in zip(metadata["labels"], metadata["thresholds"], strict=True):
        metrics = metadata["metrics"][label]
        f1 = "out-of-fold F1" if "out_of_fold_f1" in metrics else "validation F1"
        score = metrics["out_of_fold_f1" if "out_of_fold_f1" in metrics else "val_f1"]
        typer.echo(f"{label}: {metadata['winners'][label]}, {f1} {score:.3f} at threshold {threshold:.3f}")
    for key, where in (("validation", "on validation"), ("out_of_fold", "out of fold")):
        steps = {task: told[key] for task, told in metadata.get("refinement", {}).items() if key in told}
        if steps:
            Console().print(table_of(steps, where))


def tell_metrics(metrics: dict[str, Any]) -> None:
    """Scores, and where they were written."""
    from rich.console import Console

    from ovr_ray.results import table_of

    Console().print(table_of(metrics))
    typer.echo(metrics["file"])
