"""Batch prediction with a joint model: which images, and their way through Ray Data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd
import ray
import ray.data
from ray.exceptions import RayError
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from upath import UPath

from ovr_ray import cluster
from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.images import SUFFIXES, progress, read_table
from ovr_ray.joint import load_torchscript
from ovr_ray.recipe import Recipe, absolute, is_anchored, parse
from ovr_ray.results.worker import answer
from ovr_ray.run_folder import RunFolder

CHUNK = 128
"""Images of one table that are answered by one task; so few in all start no cluster."""
SIDE_BY_SIDE = 6
"""Labels that have a column each on a terminal."""
TABLES = (".csv", ".parquet")
"""Files that are taken for tables that name images."""


class Model:
    """A joint model's file, what it says of itself, and the run folder that it lies in, if it does.

    Parameters
    ----------
    path : str
        Of a ``joint.pt`` or of a run folder.

    Raises
    ------
    BadInput
        If there is none, or it is not a joint model.
    """

    def __init__(self, path: str) -> None:
        self.file = UPath(path).absolute()
        if self.file.is_dir():
            self.file = self.file / "joint.pt"
            if not self.file.exists() and (self.file.parent / "recipe.yaml").exists():
                raise BadInput(Fault(path, "this run has no joint.pt yet", f"ovr-ray combine {path}"))
        if not self.file.exists():
            raise BadInput(Fault(path, "no such model", "give a joint.pt, or a run folder that has one"))
        content = self.file.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        _, self.metadata = load_torchscript(content)
        is_run = (self.file.parent / "recipe.yaml").exists()
        self.run = RunFolder(self.file.parent) if is_run else None

    def recipe(self) -> Recipe:
        """The one that the model was made with."""
        return parse(self.metadata["recipe"], str(self.file))


def find_images(paths: Sequence[str], recipe: Recipe, root: str | None = None) -> pd.DataFrame:
    """Image files, folders searched through, and tables that name images.

    Parameters
    ----------
    paths : sequence of str
        Paths or URIs. A ``.csv`` or ``.parquet`` file has a column ``data.filename`` of the recipe.
    recipe : Recipe
        The model's.
    root : str, optional
        What a table's names are relative to; default: its folder.

    Returns
    -------
    DataFrame
        ``filename``, as it was given or as its table has it, and ``path``, from the root, or a URI.

    Raises
    ------
    BadInput
        For what is not there, folders without an image, and tables without names.
    """
    found, faults = [], []
    for given in paths:
        try:
            found.append(_found(given, recipe, root))
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(faults)
    return pd.concat(found, ignore_index=True)


def _found(given: str, recipe: Recipe, root: str | None) -> pd.DataFrame:
    path = UPath(given)
    if path.is_dir():
        files = sorted(str(f) for f in path.rglob("*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise BadInput(Fault(given, "no image in this folder", f"images end in {', '.join(SUFFIXES)}"))
        return _located(files)
    if path.suffix.lower() in TABLES:
        names = _names(given, recipe.data.filename, recipe.data.separator)
        return _located(names, str(path.parent) if root is None else root)
    if not path.exists():
        raise BadInput(Fault(given, "no such file or folder"))
    return _located([given])


def _names(table: str, column: str, separator: str) -> list[str]:
    read = read_table(table, separator)
    if list(read.columns).count(column) != 1:
        problem = f"has no column {column!r}" if column not in read.columns else f"has column {column!r} twice"
        remedy = f"its columns: {', '.join(read.columns)}; separator, as in the model's recipe: {separator!r}"
        raise BadInput(Fault(table, problem, remedy))
    names = read[column]
    empty = names.index[names.str.strip() == ""]
    if len(empty):
        raise BadInput(Fault(f"{table}, column {column!r}", f"{len(empty)} rows name no file, row {empty[0]} for one"))
    return names.tolist()


def _located(names: Sequence[str], root: str = "") -> pd.DataFrame:
    """Workers have a current folder of their own, so that every path must go from the root."""
    paths = [absolute(name if not root or is_anchored(name) else f"{root}/{name}") for name in names]
    return pd.DataFrame({"filename": list(names), "path": paths}, dtype=object)


def predict(
    model: Model, files: Sequence[str] | pd.DataFrame, root: str = "", workers: int | None = None
) -> pd.DataFrame:
    """Probabilities and decisions for image files.

    Parameters
    ----------
    model : Model
    files : sequence of str, or DataFrame
        Paths or URIs, below ``root`` if it is given; or what :func:`find_images` found.
    root : str
    workers : int, optional
        At most so many processes; default: one a GPU, or one a CPU where there is none.

    Returns
    -------
    DataFrame
        A row a file, in their order: ``filename``, for every label ``<label>_probability`` (float) and ``<label>``
        (0/1), and ``error``: why a file could not be read; its other cells are empty.
    """
    images = files if isinstance(files, pd.DataFrame) else _located(files, root)
    chunks = [images.iloc[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    answers = {}
    with progress(len(images)) as advance:
        for number, table in in_turn(model, chunks, answer, workers):
            answers[number] = table
            advance(len(table))
    table = pd.concat([answers[number] for number in range(len(chunks))], ignore_index=True)
    return table.astype(dict.fromkeys(model.metadata["labels"], "Int64"))


def in_turn(
    model: Model,
    chunks: Sequence[pd.DataFrame],
    work: Callable[..., pd.DataFrame],
    workers: int | None = None,
    folder: UPath | None = None,
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Have some work done on every chunk of images; a few images are answered before a cluster would have started.

    Parameters
    ----------
    model : Model
    chunks : sequence of DataFrame
        ``filename`` and ``path``; all but the last of one length.
    work : callable
        As :func:`ovr_ray.results.worker.answer`.
    workers : int, optional
    folder : UPath, optional
        Where the workers write, which every node must see.

    Yields
    ------
    int, DataFrame
        A chunk's number and what was returned for it, in the order in which they are done.
    """
    work = partial(work, file=str(model.file), digest=model.digest)
    if sum(map(len, chunks)) <= CHUNK and not (ray.is_initialized() or os.environ.get("RAY_ADDRESS")):
        yield from enumerate(map(work, chunks))
        return
    with cluster.connected():
        if folder is not None and cluster.has_several_nodes():
            cluster.refuse_unseen_storage(folder, chunks[0]["path"].iloc[0])
        share, places = cluster.shares()
        numbered = [chunk.assign(chunk=number) for number, chunk in enumerate(chunks)]
        dataset = ray.data.from_pandas(numbered).map_batches(
            partial(_numbered, work=work),
            batch_size=len(chunks[0]),  # a chunk a task; Ray takes no None where there are GPUs
            batch_format="pandas",
            compute=ray.data.TaskPoolStrategy(size=max(1, min(workers or places, len(chunks)))),
            num_cpus=share["CPU"],
            num_gpus=share["GPU"],
            max_calls=0,  # a process that has a GPU would end after one chunk, and its model with it
        )
        try:  # pyarrow: what Ray makes of Arrow's types itself has no NaN
            for done in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield done["chunk"][0].as_py(), done.drop_columns("chunk").to_pandas()
        except RayError as error:  # a full disk, a model that a node does not see
            raise RunFailed(f"prediction failed: {str(error).strip().splitlines()[-1]}") from error


def _numbered(chunk: pd.DataFrame, work: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    assert (chunk["chunk"] == chunk["chunk"].iloc[0]).all(), "Ray Data put several chunks into one batch"
    return work(chunk).assign(chunk=chunk["chunk"].iloc[0])


def answers_of(table: pd.DataFrame, labels: Sequence[str]) -> Table:
    """For people: a row an image, a column a label; of many labels those alone that are there, the surest first."""
    few = len(labels) <= SIDE_BY_SIDE
    told = Table(box=SIMPLE_HEAD)
    for column in ("image", *(labels if few else ["yes"])):
        told.add_column(column, justify="right" if few and column != "image" else "left", overflow="fold")
    for _, row in table.iterrows():
        if row.error:
            told.add_row(escape(f"{row.filename}: {row.error}"))
            continue
        probability = {label: row[f"{label}_probability"] for label in labels}
        if few:
            answers = [f"{'yes' if row[label] else 'no'} {probability[label]:.3f}" for label in labels]
        else:
            there = sorted((label for label in labels if row[label]), key=lambda label: -probability[label])
            answers = [", ".join(f"{label} {probability[label]:.3f}" for label in there)]
        told.add_row(escape(row.filename), *answers)
    return told
