"""Arguments that several commands have, and the checks of what they are given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ovr_ray.choices import LEAST_IMAGE_SIZE
from ovr_ray.commands import telling
from ovr_ray.errors import BadInput, Fault

if TYPE_CHECKING:
    from ovr_ray.recipe import Recipe
    from ovr_ray.results import SavedModel

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file; every field: jobs/recipes/reference.yaml")
]
LabelFile = Annotated[
    str, typer.Argument(metavar="LABELS.csv", help="CSV with a column of filenames and a column of 0/1 per label")
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="a run folder, <storage>/<name>")]
ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="a joint.pt or joint.onnx, or a run folder that has one")
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="e.g. --set search.max_epochs=3")]
Extensions = Annotated[
    list[str], typer.Option("--extend", metavar="TASK=+N", help="N trials more than the recipe says (repeatable)")
]
WarmStarts = Annotated[
    list[str],
    typer.Option(
        "--warm-start",
        metavar="RUN[:TASK=OTHER]",
        help="a new search knows this run's trials: each task those of the task of its name, or TASK those of OTHER",
    ),
]
Tasks = Annotated[list[str], typer.Option("--task", metavar="TASK", help="only this task (repeatable)")]

ImageSize = Annotated[int | None, typer.Option(min=LEAST_IMAGE_SIZE, help="pixels a side", show_default="winner's")]
Picks = Annotated[
    list[str],
    typer.Option("--pick", metavar="TASK=TRIAL[@EPOCH]", help="choose a winner by hand: trial or checkpoint"),
]
ImagesOfLabels = Annotated[
    str | None,
    typer.Option(
        "--images", help="folder of its filenames; without --labels, as for combine", show_default="its folder"
    ),
]
MovedImages = Annotated[
    str | None,
    typer.Option("--images", metavar="DIR", help="folder of the images, if they were moved", show_default="as it was"),
]


def is_folder(output: str | None) -> bool:
    """Return whether predictions go into a folder of parts; raises :class:`BadInput` for a file of another kind."""
    if output is None or output.endswith((".csv", ".parquet")):
        return False
    if Path(output).suffix and not output.endswith("/") and not Path(output).is_dir():
        raise BadInput(Fault(f"--output {output}", "is neither .csv nor .parquet", "a folder's name may end in /"))
    return True


def check_output(output: str | Path | None, is_table: bool = False) -> None:
    """Raise :class:`BadInput`, before any work, if the result has no name, or a folder that is absent or a job's own.

    A table of predictions must not replace a file that this program did not write, either; other files are checked by
    those that write them.
    """
    if output is None:
        return
    if not str(output).strip():
        raise BadInput(Fault(f"--output {output!r}", "names no file", "give a name, or leave --output out"))
    if "://" not in str(output):
        _check_folder(output)
    if is_table:
        from ovr_ray.runs import refuse_foreign
        from ovr_ray.storage import location

        refuse_foreign({location(output): "predictions"})


def _check_folder(output: str | Path) -> None:
    if not Path(output).absolute().parent.is_dir():
        raise BadInput(Fault(f"--output {output}", "its folder does not exist"))
    if Path(output).is_absolute():
        return
    from ovr_ray import ray_quirks

    if ray_quirks.in_job():
        raise BadInput(Fault(f"--output {output}", "a job's folder goes away", "give an absolute path"))


def open_model(path: str, are_many: bool = False) -> SavedModel:
    """Open a joint model, and print which file answers; for very many images also that ONNX Runtime could."""
    from ovr_ray.results import SavedModel

    opened = SavedModel(path)
    telling.print_engine(opened.files, are_many)
    return opened


def read_recipe(path: str, overrides: list[str], extensions: list[str] = []) -> Recipe:  # noqa: B006
    """Read a recipe, with the overrides of ``--set`` and the extensions of ``--extend``."""
    from ovr_ray.recipe import extended, load

    return extended(load(path, overrides), extensions)


def read_picks(picks: list[str]) -> dict[str, str]:
    """Return task -> trial of the values of ``--pick``."""
    pairs = [pick.partition("=") for pick in picks]
    counts = Counter(task for task, _, _ in pairs)
    faults = []
    for pick, (task, _, trial) in zip(picks, pairs, strict=True):
        if not (task and trial):
            faults.append(Fault(f"--pick {pick!r}", "is not of the form TASK=TRIAL[@EPOCH]"))
        elif counts[task] > 1:
            faults.append(Fault(f"--pick {pick!r}", f"is one of {counts[task]} for task {task!r}", "give one of them"))
    if faults:
        raise BadInput(faults)
    return {task: trial for task, _, trial in pairs}
