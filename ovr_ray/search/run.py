"""A search on Ray Tune: start it, or resume it, and follow it to its end."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

import pandas as pd
from ray import tune as ray_tune
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console

from ovr_ray import cluster, ray_quirks
from ovr_ray.checks import check
from ovr_ray.errors import BadInput, Fault, Interrupted, RunFailed
from ovr_ray.images import LabelTable, load
from ovr_ray.recipe import Recipe
from ovr_ray.runs import Clock, RunFolder
from ovr_ray.search.ledger import Ledger
from ovr_ray.search.messages import TrialKey
from ovr_ray.search.multiplex import MultiplexScheduler, MultiplexSearcher
from ovr_ray.search.progress import OUT_OF_TIME, Progress, overview
from ovr_ray.search.trackers import refuse_lacking_packages, tracking
from ovr_ray.search.trial import SearchContext, train_trial
from ovr_ray.search.warm_start import begin_with

MOST_REUSED: Final = 16
"""Largest number of slots with which a process is reused for the next trial.

Starting a process and importing torch takes as long as some trials. With more slots, trials end so often that Tune
might reuse old processes forever while those on new nodes still start.
"""


def tune(
    recipe: Recipe,
    tasks: Collection[str] = (),
    console: Console | None = None,
    warm_start: Collection[str | Path] = (),
) -> RunFolder:
    """Search every task at once, or resume a search that was interrupted.

    Parameters
    ----------
    recipe : Recipe
    tasks : collection of str
        Search only these tasks; the others keep their budget for another time. Default: all.
    console : Console, optional
        Where progress is shown.
    warm_start : collection of str or Path
        Earlier runs whose trials a new search knows from the start; see
        :func:`~ovr_ray.search.warm_start.begin_with`.

    Returns
    -------
    RunFolder

    Raises
    ------
    BadInput
        If the recipe or its data are wrong, or the recipe of an existing run has changed; nothing was trained.
    RunFailed
        If every trial of a task failed, or the run folder can no longer be written; gives the reasons.
    Interrupted
        If the search was stopped by Ctrl-C; the same call resumes it.
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
    run.refuse_foreign()
    if run.is_begun:
        table = table.resumed(run.split(), recipe.data)
    Clock(run.clock).refuse_a_second_process()
    known = begin_with(run, recipe, warm_start, console)
    with cluster.connected():
        cluster.refuse_relative_paths(recipe)
        recipe = recipe.resolved()
        need = cluster.per_trial(recipe.resources)
        if cluster.found_no_gpu(recipe.resources, need):
            console.print("No GPU in this cluster: trials train on CPUs (resources.gpu: auto)", highlight=False)
        _check_fits(recipe, need, console)
        if cluster.has_several_nodes():
            cluster.refuse_unseen_storage(run.path, f"{recipe.data.images}/{table.files.iloc[0]}")
        split = pd.DataFrame({"filename": table.files, "part": table.splits})
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
        raise Interrupted("stopped; run the same command again to resume")
    if lost := ledger.lost_tasks():
        raise RunFailed("\n".join(lost))
    return run


def _search(
    run: RunFolder,
    recipe: Recipe,
    table: LabelTable,
    ledger: Ledger,
    need: cluster.Share,
    console: Console,
    trackers: list[ray_tune.Callback],
) -> None:
    memory = recipe.resources.object_store * cluster.smallest_object_store()
    images, table = load(table, recipe.data, recipe.storage, memory)
    for row, reason in images.bad.items():
        console.print(
            f"skipped {table.files.iloc[row]} ({table.splits.iloc[row]}): {reason}", markup=False, highlight=False
        )
    for note in images.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    where = (
        "in memory, shared by all trials" if images.blocks else "streamed from storage, as they are too many to share"
    )
    console.print(f"{len(table.files)} images decoded, {images.nbytes / 1e6:,.0f} MB: {where}", highlight=False)
    mean, std = images.pixel_statistics(table.rows("train"))
    context = SearchContext(recipe, run, table, mean, std)
    train = ray_tune.with_parameters(train_trial, context=context, images=images.for_trials())
    slots = partial(_slots, recipe.search.max_concurrent, need)
    scheduler = MultiplexScheduler(ledger)
    searcher = MultiplexSearcher(ledger, slots)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(train, need.amounts()),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            time_budget_s=ledger.seconds_left,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            reuse_actors=slots() <= MOST_REUSED,
        ),
        run_config=ray_tune.RunConfig(
            name=run.trials_path.name,
            storage_path=str(run.path),
            failure_config=ray_tune.FailureConfig(max_failures=0),  # the ledger hands crashed trials out again
            callbacks=[Progress(ledger, console, needs_gpu=need.gpus > 0), *trackers],
            verbose=0,
        ),
    )
    waiting = ray_quirks.pending_trials(sum(task.trials for task in recipe.tasks.values()))
    try:
        with ray_quirks.environment(ray_quirks.DURING_SEARCH | waiting), ray_quirks.lean_tune():
            tuner.fit()
    except RuntimeError as error:
        if ray_quirks.LOW_MEMORY not in str(error):
            raise
        remedy = "run fewer at a time (search.max_concurrent), and run this again to resume"
        raise RunFailed(f"a node ran low on memory, and Ray killed trials there: {remedy}") from None


def _name(trial: TuneTrial) -> str:
    return str(TrialKey.of(trial))


def _slots(max_concurrent: int | None, need: cluster.Share) -> int:
    return max_concurrent or max(1, cluster.slots(need))


def _check_fits(recipe: Recipe, need: cluster.Share, console: Console) -> None:
    if cluster.slots(need):
        return
    if recipe.search.max_concurrent is None:
        remedy = "ask for less, or set search.max_concurrent where nodes are started on demand"
        raise BadInput(Fault("resources", f"no node of this cluster has {need}, which a trial asks for", remedy))
    message = f"Waiting for nodes with {need}, for {recipe.search.max_concurrent} trials; `ray status` shows more"
    console.print(message, highlight=False)
