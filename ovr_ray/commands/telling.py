"""The output of the command line: the results of verbs, printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from upath import UPath

    from ovr_ray.choices import ExportFormat
    from ovr_ray.errors import Fault
    from ovr_ray.images import LabelTable
    from ovr_ray.joint import JointMetadata, ModelFiles
    from ovr_ray.results import Parts
    from ovr_ray.runs import Scores

SIDE_BY_SIDE: Final = 6
"""Largest number of labels that have a column each on a terminal."""


def print_counts(recipe: str, labels: LabelTable) -> None:
    """Print how many images are positive, per task and split, and the notes on them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{recipe}: {len(labels.files)} images, no fault", title_justify="left")
    counts = labels.counts()
    table.add_column("task")
    for split in dict.fromkeys(counts.columns.get_level_values(1)):
        table.add_column(f"{split}: positives", justify="right")
    for task, row in counts.iterrows():
        cells = [f"{row['positives'][split]:g} of {row['images'][split]:g}" for split in row["images"].index]
        table.add_row(str(task), *cells)
    Console().print(table)
    skipped = labels.files[labels.labels.isna().all(axis=1)]
    if len(skipped):
        typer.echo(f"{len(skipped)} images count for no task (no label, or undecodable): {', '.join(skipped)}")
    print_notes(labels.notes)


def print_notes(notes: Iterable[Fault]) -> None:
    """Print what is worth a look but stops nothing."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def print_engine(files: ModelFiles, are_many: bool = False) -> None:
    """Print that ONNX Runtime answers on CPUs, or, for many images, that it could."""
    if files.on_cpu != files.file:
        typer.echo(f"on CPUs, {files.on_cpu} answers, by ONNX Runtime", err=True)
    elif are_many and files.file.endswith(".pt"):
        typer.echo("on CPUs, joint.onnx would be faster: ovr-ray combine RUN --format onnx", err=True)


def print_answers(table: pd.DataFrame, labels: Sequence[str]) -> None:
    """Print predictions: a table on a terminal, CSV elsewhere."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(answers_table(table, labels))
    else:
        table.to_csv(sys.stdout, sep=";", index=False, float_format="%.6f")


def print_parts(parts: Parts) -> None:
    """Print where predictions were written, and how many."""
    print_unreadable(parts.unreadable, parts.images)
    already = f", {parts.already} more were there" if parts.already else ""
    typer.echo(f"{parts.folder}: {parts.images} images{already}, in {len(parts.files)} parts", err=True)


def print_unreadable(count: int, images: int) -> None:
    """Print how many images could not be read, if any."""
    if count:
        typer.echo(f"{count} of {images} images could not be read; column 'error' says why", err=True)


def print_winners(metadata: JointMetadata) -> None:
    """Print what a joint model is made of, and the scores of each refinement step."""
    from rich.console import Console

    for label, threshold in zip(metadata.labels, metadata.thresholds, strict=True):
        metrics = metadata.metrics[label]
        is_refit = "out_of_fold_f1" in metrics
        name, score = ("out-of-fold", metrics["out_of_fold_f1"]) if is_refit else ("validation", metrics["val_f1"])
        typer.echo(f"{label}: {metadata.winners[label]}, {name} F1 {score:.3f} at threshold {threshold:.3f}")
    refined = metadata.refinement.items()
    validation = {task: ensemble.validation for task, ensemble in refined if ensemble.validation}
    out_of_fold = {task: ensemble.out_of_fold for task, ensemble in refined if ensemble.out_of_fold}
    for steps, images in ((validation, "on validation"), (out_of_fold, "out of fold")):
        if steps:
            Console().print(refinement_table(steps, images))


def print_files(model: UPath, formats: Sequence[ExportFormat]) -> None:
    """Print the paths of a joint model that was written, also in other formats."""
    from ovr_ray.runs import beside

    for file in (model, *(beside(model, f".{form}") for form in formats)):
        typer.echo(str(file))


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the scores of a joint model, and where they were written."""
    from rich.console import Console

    Console().print(metrics_table(metrics))
    typer.echo(metrics["file"])


def answers_table(table: pd.DataFrame, labels: Sequence[str]) -> Table:
    """Return a table with one row per image and one column per label.

    With many labels there is one column instead, with the labels whose answer is yes, the most probable first.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    few = len(labels) <= SIDE_BY_SIDE
    shown = Table(box=SIMPLE_HEAD)
    for column in ("image", *(labels if few else ["yes"])):
        shown.add_column(column, justify="right" if few and column != "image" else "left", overflow="fold")
    for _, row in table.iterrows():
        if row.error:
            shown.add_row(escape(f"{row.filename}: {row.error}"))
            continue
        probability = {label: row[f"{label}_probability"] for label in labels}
        if few:
            answers = [f"{'yes' if row[label] else 'no'} {probability[label]:.3f}" for label in labels]
        else:
            positive = sorted((label for label in labels if row[label]), key=lambda label: -probability[label])
            answers = [", ".join(f"{label} {probability[label]:.3f}" for label in positive)]
        shown.add_row(escape(row.filename), *answers)
    return shown


def refinement_table(steps: Mapping[str, Mapping[str, Scores]], images: str) -> Table:
    """Return a table of task -> step -> scores; ``images`` says what they were measured on."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    note = f"{images}, where thresholds and calibration were fitted; a lower Brier score is better"
    table = Table(caption=note, caption_justify="left", box=SIMPLE_HEAD)
    for column in ("task", "", "F1", "AP", "Brier"):
        table.add_column(column, justify="left" if column in ("task", "") else "right", no_wrap=True)
    for task, scores in steps.items():
        for i, (step, score) in enumerate(scores.items()):
            cells = (score.f1, score.average_precision, score.brier)
            table.add_row("" if i else task, step, *(f"{value:.3f}" for value in cells))
    return table


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Return a table with one row per task."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    note = "AP: average precision; in brackets 95 % bootstrap intervals over images"
    if metrics["part"] == "val":
        note += "\nthere is no test split: these images chose the winners and their thresholds, which flatters"
    if without := [task for task, score in metrics["tasks"].items() if score["f1"] is None]:
        note += f"\nno positive image, and so left out of the averages: {', '.join(without)}"
    title = f"{metrics['images']} images" + ("" if metrics["part"] == "all" else f", {metrics['part']} split")
    table = Table(title=title, caption=note, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for column in ("task", "positives", "F1", "AP"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for task, score in metrics["tasks"].items():
        share = "" if score["prevalence"] is None else f" ({score['prevalence']:.0%})"
        positives = f"{score['positives']}/{score['images']}{share}"
        table.add_row(task, positives, _with_interval(score, "f1"), _with_interval(score, "average_precision"))
    averages = [_number(metrics[name]) + " " * 15 for name in ("average_f1", "average_precision")]
    table.add_row("average", "", *averages)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(score: Mapping[str, Any], name: str) -> str:
    interval = score[f"{name}_interval"]
    ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else " " * 15
    return _number(score[name]) + ends
