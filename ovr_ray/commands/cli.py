"""Every verb as a command. Heavy packages are imported inside the verbs, so that ``--help`` is instant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer

from ovr_ray.choices import FOLDS, Calibration, ExportFormat, Source, TableFormat
from ovr_ray.commands import telling
from ovr_ray.commands.arguments import (
    Extensions,
    ImageSize,
    ImagesOfLabels,
    LabelFile,
    ModelPath,
    MovedImages,
    Overrides,
    Picks,
    RecipePath,
    RunPath,
    Tasks,
    WarmStarts,
    check_output,
    is_folder,
    open_model,
    read_picks,
    read_recipe,
)
from ovr_ray.errors import BadInput, Fault, OvrRayError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def about() -> None:
    """One-vs-rest image classification on Ray: a search per label, all at once, one TorchScript model at the end."""


@app.command()
def init(
    labels: LabelFile,
    images: Annotated[str | None, typer.Option(help="folder of the filenames", show_default="the CSV's folder")] = None,
    output: Annotated[Path, typer.Option(help="file of the recipe")] = Path("recipe.yaml"),
) -> None:
    """Write a starter recipe for a label file."""
    from ovr_ray.commands import verbs

    check_output(output)
    if output.exists():
        raise BadInput(Fault(str(output), "is there already", "remove it, or give another --output"))
    output.write_text(verbs.init(labels, images), encoding="utf-8")
    typer.echo(f"{output}: look it through, then: ovr-ray check {output}")


@app.command()
def check(recipe: RecipePath, overrides: Overrides = []) -> None:  # noqa: B006
    """Find everything that is wrong with a recipe, its labels and its images. Trains nothing."""
    from ovr_ray.commands import verbs

    telling.print_counts(recipe, verbs.check(read_recipe(recipe, overrides)))


@app.command()
def prepare(recipe: RecipePath, overrides: Overrides = []) -> None:  # noqa: B006
    """Decode all images into shards below the storage, where every later run finds them."""
    asked = read_recipe(recipe, overrides)
    with _on_cluster() as verbs:
        images = verbs.prepare(asked)
    size = f"{len(images.facts)} images in {len(images.shards)} shards, {images.nbytes / 1e6:,.0f} MB"
    skipped = f", {len(images.bad)} of them cannot be decoded" if images.bad else ""
    typer.echo(f"{images.shards[0].file.parent}: {size}{skipped}")
    telling.print_notes(images.notes)


@app.command()
def preview(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="a .png")] = Path("preview.png"),
) -> None:
    """Draw a contact sheet: samples of every combination of labels, as they are stored and augmented."""
    from ovr_ray.commands import verbs

    check_output(output)
    if output.suffix.lower() != ".png":
        raise BadInput(Fault(f"--output {output}", "is not a .png"))
    verbs.preview(read_recipe(recipe, overrides), output)
    typer.echo(str(output))


@app.command()
def tune(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    extend: Extensions = [],  # noqa: B006
    warm_start: WarmStarts = [],  # noqa: B006
) -> None:
    """Search every task at once, or resume an interrupted search."""
    asked = read_recipe(recipe, overrides, extend)
    with _on_cluster() as verbs:
        run = verbs.tune(asked, task, warm_start)
    typer.echo(f"{run.path}: next: ovr-ray combine {run.path}")


@app.command()
def status(run: RunPath) -> None:
    """Show how far a search is, from its run folder alone."""
    from rich.console import Console

    from ovr_ray import search
    from ovr_ray.runs import RunFolder

    Console().print(search.status(search.read_ledger(RunFolder.open(run))), highlight=False)


@app.command()
def refit(
    run: RunPath,
    folds: Annotated[int, typer.Option(min=2, help="each holds out its share of train and validation")] = FOLDS,
    workers: Annotated[int, typer.Option(min=1, help="processes that train a fold together, each on a GPU")] = 1,
    image_size: ImageSize = None,
    task: Tasks = [],  # noqa: B006
    images: MovedImages = None,
) -> None:
    """Train the winners again as folds over train and validation, or resume that."""
    with _on_cluster() as verbs:
        done = verbs.refit(run, folds, workers, task, image_size, images)
    typer.echo(f"{done.refit.path}: next: ovr-ray combine {run} --from refit")


@app.command()
def combine(
    run: RunPath,
    pick: Picks = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    output: Annotated[str | None, typer.Option(help="file of the model", show_default="RUN/joint.pt")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="average the best checkpoints of this many trials per task")] = 1,
    flip_average: Annotated[bool, typer.Option("--flip-average", help="average over an image's four flips")] = False,
    calibrate: Annotated[Calibration | None, typer.Option(help="make probabilities match frequencies")] = None,
    also: Annotated[
        Literal["torchscript", ExportFormat], typer.Option("--format", help="beside TorchScript, write it as this")
    ] = "torchscript",
    source: Annotated[Source, typer.Option("--from", help="the best checkpoints, or their refit's folds")] = "search",
    images: MovedImages = None,
) -> None:
    """Choose every task's best checkpoint, or the best few, and assemble the joint TorchScript model."""
    from ovr_ray import joint
    from ovr_ray.commands import verbs

    check_output(output)
    refinement = joint.Refinement(top_k, flip_average, calibrate)
    formats = [] if also == "torchscript" else [also]
    model = verbs.combine(run, read_picks(pick), task, output, refinement, formats, source, images)
    telling.print_winners(model.metadata)
    telling.print_files(model.file, formats)


@app.command()
def evaluate(
    model: ModelPath,
    labels: Annotated[str | None, typer.Option(help="label file", show_default="the run's own test split")] = None,
    images: ImagesOfLabels = None,
    output: Annotated[str | None, typer.Option(help="file of the metrics", show_default="beside the model")] = None,
    task: Tasks = [],  # noqa: B006
    separator: Annotated[str | None, typer.Option(help="of LABELS' columns", show_default="as in the recipe")] = None,
) -> None:
    """Score a joint model on images that no trial has seen."""
    from ovr_ray.commands import verbs

    check_output(output)
    telling.print_metrics(verbs.evaluate(open_model(model), labels, images, output, task, separator))


@app.command()
def predict(
    model: ModelPath,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH…", help="image files, folders, .csv or .parquet files of filenames"),
    ],
    images: Annotated[str | None, typer.Option(help="folder of a table's names", show_default="its folder")] = None,
    output: Annotated[
        str | None, typer.Option(help="FILE.csv or FILE.parquet, or a folder for parts", show_default="the terminal")
    ] = None,
    form: Annotated[TableFormat | None, typer.Option("--format", help="of the parts", show_default="parquet")] = None,
) -> None:
    """Write a probability and a decision for every label of every image.

    A folder is for very many images. After an interruption, the same command resumes with the parts that are missing.
    """
    from ovr_ray import results
    from ovr_ray.commands import verbs
    from ovr_ray.storage import location

    in_parts = is_folder(output)
    if form and not in_parts:
        raise BadInput(Fault(f"--format {form}", "is for a folder of parts", "give --output DIR"))
    check_output(output, is_table=not in_parts)
    opened = open_model(model, are_many=in_parts)
    if output and in_parts:
        telling.print_parts(verbs.predict_parts(opened, paths, output, images, form or "parquet"))
        return
    table = verbs.predict(opened, paths, images)
    if output:
        results.write_table(table, location(output))
    else:
        telling.print_answers(table, opened.metadata.labels)
    telling.print_unreadable(int((table.error != "").sum()), len(table))
    if output:
        typer.echo(f"{output}: {len(table)} images", err=True)


@app.command()
def report(run: RunPath, images: MovedImages = None) -> None:
    """Write report.html, one page of trials, curves and mistakes; also while a search runs."""
    from ovr_ray.commands import verbs

    typer.echo(str(verbs.report(run, images)))


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    extend: Extensions = [],  # noqa: B006
    warm_start: WarmStarts = [],  # noqa: B006
) -> None:
    """Tune, combine, evaluate and report."""
    asked = read_recipe(recipe, overrides, extend)
    with _on_cluster() as verbs:
        metrics = verbs.run(asked, task, warm_start)
    telling.print_metrics(metrics)
    typer.echo(f"{metrics['model']}: the joint model")
    typer.echo(f"{metrics['report']}: the search, its winners and their mistakes, as a page")


@app.command()
def submit(
    recipe: RecipePath,
    address: Annotated[str, typer.Option(metavar="URL", help="of the cluster's dashboard, e.g. http://localhost:8265")],
    overrides: Overrides = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    output: Annotated[Path, typer.Option(metavar="DIR", help="folder for the model and its metrics")] = Path("runs"),
    install: Annotated[
        bool, typer.Option("--install", help="pip-install on the nodes what this project needs and they lack")
    ] = False,
) -> None:
    """Tune, combine, evaluate and report as jobs on a cluster; follow them, and fetch the model home."""
    from ovr_ray.commands import verbs
    from ovr_ray.runs import joint_model_in
    from ovr_ray.storage import location

    home = verbs.submit(read_recipe(recipe, overrides), address, task, output, install)
    typer.echo(f"{joint_model_in(location(home))}: the joint model")


@contextmanager
def _on_cluster() -> Iterator[ModuleType]:
    """Yield the verbs, which are imported while Ray starts."""
    from ovr_ray import cluster

    with cluster.connected(meanwhile=partial(import_module, "ovr_ray.commands.verbs")):
        from ovr_ray.commands import verbs

        yield verbs


def main(verb: str | None = None) -> None:
    """Run the command line; a job gives its verb.

    Ends the process: 0 done, 1 the work failed, 2 bad input, 130 stopped by the user.
    """
    try:
        app([verb, *sys.argv[1:]] if verb else sys.argv[1:], prog_name="ovr-ray")
    except OvrRayError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, or a folder that cannot be written
        typer.secho(f"{error.filename or 'input/output'}: {error.strerror or error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except Exception as error:
        if not type(error).__module__.startswith("botocore."):
            raise
        typer.secho(f"storage: {error}\n    -> aws configure gives credentials", fg=typer.colors.RED, err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
