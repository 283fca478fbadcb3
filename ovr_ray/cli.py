"""Every verb once, as a command. Heavy things are imported inside the verbs, so that help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ovr_ray.errors import BadInput, Fault, OvrRayError

if TYPE_CHECKING:
    from ovr_ray.recipe import Recipe

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file; every field: jobs/recipes/reference.yaml")
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="a run folder, <storage>/<name>")]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="a joint.pt, or a run folder that has one")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="e.g. --set search.max_epochs=3")]
Tasks = Annotated[list[str], typer.Option("--task", metavar="TASK", help="this task alone (repeatable)")]


@app.callback()
def about() -> None:
    """One-vs-rest image classification on Ray: a search per label, all at once, one TorchScript model at the end."""


@app.command()
def init(
    labels: Annotated[
        str, typer.Argument(metavar="LABELS.csv", help="CSV with a column of filenames, and of 0/1 a label")
    ],
    images: Annotated[str | None, typer.Option(help="what the filenames are relative to [the CSV's folder]")] = None,
    output: Annotated[Path, typer.Option(help="where the recipe goes")] = Path("recipe.yaml"),
) -> None:
    """Write a starter recipe for a label file."""
    from ovr_ray import verbs

    _check_output(output)
    if output.exists():
        raise BadInput(Fault(str(output), "is there already", "remove it, or give another --output"))
    output.write_text(verbs.init(labels, images), encoding="utf-8")
    typer.echo(f"{output}: look it through, then: ovr-ray check {output}")


@app.command()
def check(recipe: RecipePath, overrides: Overrides = []) -> None:  # noqa: B006
    """Find everything that is wrong with a recipe, its labels and its images. Trains nothing."""
    from rich.console import Console
    from rich.table import Table

    from ovr_ray import verbs

    labels = verbs.check(_recipe(recipe, overrides))
    table = Table(title=f"{recipe}: {len(labels.files)} images, no fault", title_justify="left")
    counts = labels.counts()
    table.add_column("task")
    for part in dict.fromkeys(counts.columns.get_level_values(1)):
        table.add_column(f"{part}: positives", justify="right")
    for task, row in counts.iterrows():
        parts = [f"{row['positives'][part]:g} of {row['images'][part]:g}" for part in row["images"].index]
        table.add_row(str(task), *parts)
    Console().print(table)
    skipped = labels.files[labels.labels.isna().all(axis=1)]
    if len(skipped):
        typer.echo(f"{len(skipped)} images count for no task (no label, or undecodable): {', '.join(skipped)}")


@app.command()
def tune(recipe: RecipePath, overrides: Overrides = [], task: Tasks = []) -> None:  # noqa: B006
    """Search every task at once, or go on with a search that was interrupted."""
    from ovr_ray import verbs

    run = verbs.tune(_recipe(recipe, overrides), task)
    typer.echo(f"{run.path}: next: ovr-ray combine {run.path}")


@app.command()
def status(run: RunPath) -> None:
    """Tell how far a search is, from its run folder alone."""
    from rich.console import Console

    from ovr_ray import search
    from ovr_ray.run_folder import RunFolder

    Console().print(search.status(search.read_ledger(RunFolder.open(run))), highlight=False)


@app.command()
def combine(
    run: RunPath,
    pick: Annotated[
        list[str], typer.Option(metavar="TASK=TRIAL[@EPOCH]", help="choose a winner by hand: trial or checkpoint")
    ] = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    output: Annotated[str | None, typer.Option(help="where the model goes [RUN/joint.pt]")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="average the best checkpoints of so many trials a task")] = 1,
    flip_average: Annotated[bool, typer.Option("--flip-average", help="average over an image's four flips")] = False,
    calibrate: Annotated[
        Literal["platt", "temperature"] | None, typer.Option(help="make probabilities frequencies")
    ] = None,
    also: Annotated[
        Literal["torchscript", "onnx", "pt2"], typer.Option("--format", help="beside TorchScript, write it as this")
    ] = "torchscript",
) -> None:
    """Choose every task's best checkpoint, or the best few, and assemble the joint TorchScript model."""
    from ovr_ray import joint, verbs

    _check_output(output)
    refinement = joint.Refinement(top_k, flip_average, calibrate)
    formats = [] if also == "torchscript" else [also]
    model = verbs.combine(run, _picks(pick), task, output, refinement, formats)
    _tell_winners(model.metadata)
    for file in (model.file, *(model.file.with_suffix(f".{form}") for form in formats)):
        typer.echo(str(file))


@app.command()
def evaluate(
    model: ModelPath,
    labels: Annotated[str | None, typer.Option(help="label file [the run's own test part]")] = None,
    images: Annotated[str | None, typer.Option(help="what its filenames are relative to [its folder]")] = None,
    output: Annotated[str | None, typer.Option(help="where the metrics go [metrics.json beside the model]")] = None,
) -> None:
    """Score a joint model on images that no trial has seen."""
    from ovr_ray import verbs

    _check_output(output)
    _tell_metrics(verbs.evaluate(model, labels, images, output))


@app.command()
def predict(
    model: ModelPath,
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="image files and folders")],
    output: Annotated[Path | None, typer.Option(help=".csv or .parquet [the terminal]")] = None,
) -> None:
    """Write a probability and a decision for every label of every image."""
    from rich.console import Console

    from ovr_ray import results, verbs

    if output and output.suffix not in (".csv", ".parquet"):
        raise BadInput(Fault(f"--output {output}", "is neither .csv nor .parquet"))
    _check_output(output)
    opened = results.Model(model)
    table = verbs.predict(opened, paths)
    if output is None and sys.stdout.isatty():
        Console().print(results.answers_of(table, opened.metadata["labels"]))
    elif output is None:
        table.to_csv(sys.stdout, sep=";", index=False, float_format="%.6f")
    elif output.suffix == ".csv":
        table.to_csv(output, sep=";", index=False)
    else:
        table.to_parquet(output, index=False)
    unreadable = int((table.error != "").sum())
    if unreadable:
        typer.echo(f"{unreadable} of {len(table)} images could not be read; column 'error' says why", err=True)
    if output:
        typer.echo(f"{output}: {len(table)} images", err=True)


@app.command()
def run(recipe: RecipePath, overrides: Overrides = [], task: Tasks = []) -> None:  # noqa: B006
    """Tune, combine and evaluate."""
    from ovr_ray import verbs

    metrics = verbs.run(_recipe(recipe, overrides), task)
    _tell_metrics(metrics)
    typer.echo(f"{metrics['model']}: the joint model")


@app.command()
def submit(
    recipe: RecipePath,
    address: Annotated[str, typer.Option(metavar="URL", help="of the cluster's dashboard, e.g. http://localhost:8265")],
    overrides: Overrides = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    output: Annotated[Path, typer.Option(metavar="DIR", help="where the model and its metrics go")] = Path("runs"),
    install: Annotated[
        bool, typer.Option("--install", help="pip-install on the nodes what this project needs and they lack")
    ] = False,
) -> None:
    """Tune, combine and evaluate as jobs on a cluster; follow them, and fetch the model home."""
    from ovr_ray import verbs

    home = verbs.submit(_recipe(recipe, overrides), address, task, output, install)
    typer.echo(f"{home / 'joint.pt'}: the joint model")


def _check_output(output: str | Path | None) -> None:
    """Before the work is done: where its result goes must exist, and last longer than a job's folder."""
    from ovr_ray import cluster

    if output is None or "://" in str(output):
        return
    if not Path(output).absolute().parent.is_dir():
        raise BadInput(Fault(f"--output {output}", "its folder does not exist"))
    if cluster.in_job() and not Path(output).is_absolute():
        raise BadInput(Fault(f"--output {output}", "a job's folder goes away", "give an absolute path"))


def _recipe(path: str, overrides: list[str]) -> Recipe:
    from ovr_ray.recipe import load

    return load(path, overrides)


def _picks(picks: list[str]) -> dict[str, str]:
    pairs = [pick.partition("=") for pick in picks]
    if wrong := [pick for pick, (_, _, trial) in zip(picks, pairs, strict=True) if not trial]:
        raise BadInput([Fault(f"--pick {pick}", "is not of the form TASK=TRIAL[@EPOCH]") for pick in wrong])
    return {task: trial for task, _, trial in pairs}


def _tell_winners(metadata: dict[str, Any]) -> None:
    from rich.console import Console

    from ovr_ray.joint import table_of

    for label, threshold in zip(metadata["labels"], metadata["thresholds"], strict=True):
        metrics = metadata["metrics"][label]
        typer.echo(
            f"{label}: {metadata['winners'][label]}, validation F1 {metrics['val_f1']:.3f} at threshold {threshold:.3f}"
        )
    if refinement := metadata.get("refinement"):
        Console().print(table_of({task: told["validation"] for task, told in refinement.items()}))


def _tell_metrics(metrics: dict[str, Any]) -> None:
    from rich.console import Console

    from ovr_ray.results import table_of

    Console().print(table_of(metrics))
    typer.echo(metrics["file"])


def main(verb: str | None = None) -> None:
    """Run the command line; a job gives its verb.

    Ends the process: 0 done, 1 the work failed, 2 bad input, 130 stopped by the user.
    """
    try:
        app([verb, *sys.argv[1:]] if verb else sys.argv[1:], prog_name="ovr-ray")
    except OvrRayError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that may not be written
        typer.secho(f"{error.filename or 'input/output'}: {error.strerror or error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except Exception as error:
        if not type(error).__module__.startswith("botocore."):
            raise
        typer.secho(f"storage: {error}\n    -> aws configure gives credentials", fg=typer.colors.RED, err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
