"""How many requests a run in a bucket costs, counted on the server."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from upath import UPath

from ovr_ray.joint import choose
from ovr_ray.recipe import Recipe, parse
from ovr_ray.runs import RunFolder
from ovr_ray.search import Ledger

PAGE = 1000
"""Objects that S3 lists per request."""


class Requests(logging.Handler):
    """Counts what the server was asked for, by method and path."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        method, path, *_ = record.getMessage().partition('"')[2].split()
        self.counts[f"{method} {path}"] += 1

    def of(self, ending: str) -> list[int]:
        """Return how many times each path with this ending was asked for."""
        return [count for path, count in self.counts.items() if path.endswith(ending)]

    @property
    def listings(self) -> int:
        """Number of listings."""
        return sum(count for path, count in self.counts.items() if "list-type=2" in path)


@contextmanager
def counted() -> Iterator[Requests]:
    log, requests = logging.getLogger("werkzeug"), Requests()
    level = log.level
    log.addHandler(requests)
    log.setLevel(logging.INFO)
    try:
        yield requests
    finally:
        log.removeHandler(requests)
        log.setLevel(level)


def search_in(bucket: str, tasks: int, trials: int) -> tuple[RunFolder, Recipe]:
    """Put the files of a finished search into the server's memory: per trial a record, epochs and one checkpoint."""
    task = {"trials": trials, "default": {"lr": 1e-3}}
    data = {"labels": "/data.csv", "images": "/images"}
    recipe = parse({"name": "many", "data": data, "tasks": {f"task{t}": task for t in range(tasks)}, "storage": bucket})
    store, name = s3_backends[DEFAULT_ACCOUNT_ID]["aws"], bucket.removeprefix("s3://")
    store.put_object(name, "many/search.json", b'{"seconds": 60.0, "time": 0}')
    config = recipe.tasks["task0"].default.model_dump(mode="json")
    for task_name in recipe.tasks:
        for number in range(trials):
            score = {"epoch": 1, "val_average_precision": number / trials, "val_f1": 0.5}
            card = {"task": task_name, "config": config, "epoch": 1, "metrics": score, "threshold": 0.5}
            card |= {
                "stored_size": 32,
                "image_size": 32,
                "channels": 1,
                "mean": [0.5],
                "std": [0.2],
                "weights_bytes": 5,
            }
            record = {"task": task_name, "number": number, "status": "finished", "config": config}
            files = {
                "trial.json": json.dumps(record),
                "epochs.csv": "epoch;val_average_precision\n1;0.5\n",
                "checkpoint-0001/sub_model.json": json.dumps(card),
                "checkpoint-0001/weights.pt": "12345",
            }
            for file, content in files.items():
                store.put_object(name, f"many/trials/{task_name}-{number:04d}/{file}", content.encode())
    return RunFolder(UPath(bucket) / "many"), recipe


@pytest.mark.parametrize(
    ("tasks", "trials"),
    [(3, 20), pytest.param(20, 400, marks=[pytest.mark.slow, pytest.mark.long])],
)
def test_winners_cost_one_listing_and_each_record_and_card_once(bucket: str, tasks: int, trials: int) -> None:
    run, recipe = search_in(bucket, tasks, trials)
    with counted() as requests:
        winners = choose(run, recipe)
    assert {winner.trial for winner in winners.values()} == {f"task{t}-{trials - 1:04d}" for t in range(tasks)}
    assert requests.listings <= -(-tasks * trials * 4 // PAGE) + 1
    assert requests.of("/trial.json") == [1] * (tasks * trials)
    assert requests.of("/sub_model.json") == [1] * (tasks * trials)
    assert not requests.of("/weights.pt")


def test_the_ledger_costs_one_listing_and_each_record_and_its_epochs_once(bucket: str) -> None:
    run, recipe = search_in(bucket, tasks=3, trials=20)
    with counted() as requests:
        ledger = Ledger(run, recipe, recipe.tasks)
    assert ledger.complete()
    assert requests.listings == 1
    assert requests.of("/trial.json") == requests.of("/epochs.csv") == [1] * 60


def test_foreign_files_are_looked_for_with_one_listing_and_the_recipe(bucket: str) -> None:
    run, _ = search_in(bucket, tasks=1, trials=1)
    store, name = s3_backends[DEFAULT_ACCOUNT_ID]["aws"], bucket.removeprefix("s3://")
    store.put_object(name, "many/recipe.yaml", b"name: many\nmade_with: {}\n")
    with counted() as requests:
        run.refuse_foreign()
    assert requests.listings == 1
    assert requests.of("/recipe.yaml") == [1]
    assert requests.counts.total() == 2
