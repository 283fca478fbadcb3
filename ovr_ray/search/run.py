"""The search: start, resume, follow."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

import pandas as pd
from ray import tune as ray_tune
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console

from ovr_ray import cluster
from ovr_ray.checks import check
from ovr_ray.errors import BadInput, Fault, Interrupted, RunFailed
from ovr_ray.images import LabelTable, load
from ovr_ray.recipe import Recipe
from ovr_ray.run_folder import RunFolder, trial_name
from ovr_ray.search.clock import Clock
from ovr_ray.search.ledger import Ledger
from ovr_ray.search.multiplex import MultiplexScheduler, MultiplexSearcher
from ovr_ray.search.progress import OUT_OF_TIME, Progress, overview
from ovr_ray.search.trackers import refuse_lacking_packages, tracking
from ovr_ray.search.trial import Job, train_trial
from ovr_ray.search.warm_start import begin_with

MOST_REUSED = 16
"""Slots up to which trials follow each other in one process, as to start one and import torch takes as long as some
trials. With more, trials end so often that Tune might hand on old processes for ever while new nodes' still start."""

LOW_MEMORY = "running low on memory"
"""What Ray says when it kills workers for memory. Tune knows no such end of a trial, and gives up."""


def tune(
    recipe: Recipe,
    tasks: Collection[str] = (),
    console: Console | None = None,
    warm_start: Collection[str | Path] = (),
) -> RunFolder:
    """Search every task at once, or go on with a search that was interrupted.

    Parameters
    ----------
    recipe : Recipe
    tasks : collection of str
        Train these alone; the others keep their budget for another time. Default: all.
    console : Console, optional
        Where progress is shown.
    warm_start : collection of str or Path
        Runs whose trials a new search knows before its first; see :func:`~ovr_ray.search.warm_start.begin_with`.

    Returns
    -------
    RunFolder

    Raises
    ------
    BadInput
        If the recipe, its data, or a changed recipe under an old name are wrong; nothing was trained.
    RunFailed
        If every trial of a task failed, or the run folder can no longer be written; says why.
    Interrupted
        If the search was stopped by Ctrl-C; the same call goes on with it.
    """
    console = console or Console()
    unknown = [
        Fault(f"--task {task}", "no such task", f"tasks: {', '.join(recipe.tasks)}")
        for task in tasks
        if task not in recipe.tasks
    ]
    if unknown:
        raise BadInput(unknown)
    cluster.refuse_relative_paths(recipe)
    refuse_lacking_packages(recipe.search.trackers)
    table = check(recipe)
    run = RunFolder.of(recipe)
    Clock(run).refuse_a_second_search()
    known = begin_with(run, recipe, warm_start, console)
    with cluster.connected():
        cluster.refuse_relative_paths(recipe)
        recipe = recipe.resolved()
        need = cluster.per_trial(recipe.resources)
        _check_fits(recipe, need, console)
        if cluster.has_several_nodes():
            cluster.refuse_unseen_storage(run.path, f"{recipe.data.images}/{table.files.iloc[0]}")
        split = pd.DataFrame({"filename": table.files, "part": table.parts})
        run.begin(recipe, table.fingerprint(), split)
        known.save(run)
        ledger = Ledger(run, recipe, tasks or recipe.tasks)
        ledger.settle()
        if not ledger.complete() and not ledger.out_of_time:
            with ledger.clock.ticking(), tracking(recipe, run, console) as trackers:
                _search(run, recipe, table, ledger, need, console, trackers)
            ledger.rest()
        console.print(overview(ledger))
    if ledger.refusal:
        raise ledger.refusal
    if ledger.out_of_time and not ledger.complete():
        console.print(OUT_OF_TIME)
    elif not ledger.complete():
        raise Interrupted("stopped; run the same command again to go on where it was")
    if lost := ledger.lost_tasks():
        raise RunFailed("\n".join(lost))
    return run


def _search(
    run: RunFolder,
    recipe: Recipe,
    table: LabelTable,
    ledger: Ledger,
    need: dict[str, float],
    console: Console,
    trackers: list[ray_tune.Callback],
) -> None:
    memory = recipe.resources.object_store * cluster.smallest_object_store()
    images, table = load(table, recipe.data, recipe.storage, memory)
    for row, reason in images.bad.items():
        console.print(
            f"skipped {table.files.iloc[row]} ({table.parts.iloc[row]}): {reason}", markup=False, highlight=False
        )
    where = (
        "in memory, shared by all trials" if images.blocks else "streamed from storage, as they are too many to share"
    )
    console.print(f"{len(table.files)} images decoded, {images.nbytes / 1e6:,.0f} MB: {where}", highlight=False)
    mean, std = images.pixel_statistics(table.rows("train"))
    job = Job(recipe, run, table, {task: table.pos_weight(task) for task in recipe.tasks}, mean, std)
    scheduler = MultiplexScheduler(ledger)
    searcher = MultiplexSearcher(ledger, partial(_slots, recipe.search.max_concurrent, need))
    os.environ["RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE"] = "1"  # Tune would start a preempted trial again, and so do we
    # without it a custom searcher has one trial waiting at a time, and an autoscaler adds nodes one by one
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(sum(task.trials for task in recipe.tasks.values()))
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(ray_tune.with_parameters(train_trial, job=job, images=images.for_trials()), need),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            time_budget_s=ledger.seconds_left,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            reuse_actors=_slots(recipe.search.max_concurrent, need) <= MOST_REUSED,
        ),
        run_config=ray_tune.RunConfig(
            name="trials",
            storage_path=str(run.path),
            failure_config=ray_tune.FailureConfig(max_failures=0),  # the ledger hands crashed trials out again
            callbacks=[Progress(ledger, console, needs_gpu=bool(need["GPU"])), *trackers],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except RuntimeError as error:
        if LOW_MEMORY not in str(error):
            raise
        remedy = "run fewer at a time (search.max_concurrent), and run this again: it goes on"
        raise RunFailed(f"a node ran low on memory, and Ray killed trials there: {remedy}") from None


def _name(trial: TuneTrial) -> str:
    return trial_name(trial.config["task"], trial.config["number"])


def _slots(max_concurrent: int | None, need: dict[str, float]) -> int:
    return max_concurrent or max(1, cluster.slots(need))


def _check_fits(recipe: Recipe, need: dict[str, float], console: Console) -> None:
    if cluster.slots(need):
        return
    asked = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items() if amount)
    if recipe.search.max_concurrent is None:
        remedy = "ask for less, or set search.max_concurrent where nodes are started on demand"
        raise BadInput(Fault("resources", f"no node of this cluster has {asked}, which a trial asks for", remedy))
    told = f"Waiting for nodes with {asked}, for {recipe.search.max_concurrent} trials; `ray status` tells more"
    console.print(told, highlight=False)
