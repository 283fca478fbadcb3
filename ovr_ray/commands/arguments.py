"""Arguments that several commands have, and the checks of what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ovr_ray.errors import BadInput, Fault

if TYPE_CHECKING:
    from ovr_ray.recipe import Recipe

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file; every field: jobs/recipes/reference.yaml")
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="a run folder, <storage>/<name>")]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="a joint.pt, or a run folder that has one")]
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


def is_folder(output: str | None) -> bool:
    """Return whether predictions go into a folder of parts; raises :class:`BadInput` for a file of another kind."""
    if output is None or output.endswith((".csv", ".parquet")):
        return False
    if Path(output).suffix and not output.endswith("/") and not Path(output).is_dir():
        raise BadInput(Fault(f"--output {output}", "is neither .csv nor .parquet", "a folder's name may end in /"))
    return True


def check_output(output: str | Path | None) -> None:
    """Raise :class:`BadInput`, before any work, if the folder of the result does not exist or is a job's own."""
    if output is None or "://" in str(output):
        return
    if not Path(output).absolute().parent.is_dir():
        raise BadInput(Fault(f"--output {output}", "its folder does not exist"))
    if Path(output).is_absolute():
        return
    from ovr_ray import ray_quirks

    if ray_quirks.in_job():
        raise BadInput(Fault(f"--output {output}", "a job's folder goes away", "give an absolute path"))


def read_recipe(path: str, overrides: list[str], extensions: list[str] = []) -> Recipe:  # noqa: B006
    """Read a recipe, with the overrides of ``--set`` and the extensions of ``--extend``."""
    from ovr_ray.recipe import extended, load

    return extended(load(path, overrides), extensions)


def read_picks(picks: list[str]) -> dict[str, str]:
    """Return task -> trial of the values of ``--pick``."""
    pairs = [pick.partition("=") for pick in picks]
    if wrong := [pick for pick, (_, _, trial) in zip(picks, pairs, strict=True) if not trial]:
        raise BadInput([Fault(f"--pick {pick}", "is not of the form TASK=TRIAL[@EPOCH]") for pick in wrong])
    return {task: trial for task, _, trial in pairs}
