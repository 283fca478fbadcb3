"""A refit: every winner's config trained again as folds, all of them at once as far as the cluster has room."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from upath import UPath

from ovr_ray import cluster
from ovr_ray.checks import check
from ovr_ray.errors import BadInput, Fault, Interrupted, RunFailed
from ovr_ray.images import load
from ovr_ray.joint import Winner, winners
from ovr_ray.model import average_precision, size_fault, weights_fault
from ovr_ray.recipe import Checkpoints, Config, Recipe, absolute
from ovr_ray.refitting.fold import Fold, Shared, train_fold
from ovr_ray.refitting.folds import NONE, assign, labels_of
from ovr_ray.run_folder import RunFolder
from ovr_ray.search import Clock
from ovr_ray.session import Assignment, derived_seed

FOLDS = 5
"""How many, unless another number is asked for."""

SMALLEST = 8
"""Image that a config may ask for."""


def refit(
    run: RunFolder,
    folds: int = FOLDS,
    workers: int = 1,
    tasks: Collection[str] = (),
    image_size: int | None = None,
    console: Console | None = None,
) -> RunFolder:
    """Train every task's winning config again as folds over train and validation, or go on with that.

    The winners are those of ``winners.json``, or else of :func:`ovr_ray.joint.winners.choose`. Every fold is trained
    for as many epochs as the winner was, and says what it thinks of the images that it held out.

    Parameters
    ----------
    run : RunFolder
    folds : int
    workers : int
        Of a fold; see :class:`ovr_ray.model.Trainer`. Each asks for what a trial asks for.
    tasks : collection of str
        These alone; default: all of the recipe.
    image_size : int, optional
        Pixels a side that the folds see; default: as the refit began, or those that their winner saw. A search of small
        images and a refit of large ones costs less than both of large ones.
    console : Console, optional
        Where progress is shown.

    Returns
    -------
    RunFolder

    Raises
    ------
    BadInput
        If a task is unknown, folds, workers, pixels or epochs are too many, the labels have changed, a search or
        another refit is under way, or there is a refit of something else; nothing was trained.
    RunFailed
        If a task has no winner yet, or folds failed; says why.
    Interrupted
        If it was stopped by Ctrl-C; the same call goes on with it.
    """
    console = console or Console()
    run = RunFolder(UPath(absolute(str(run.path))))  # Ray Train's workers have a working folder of their own
    recipe = run.recipe()
    chosen = _winners(run, recipe, tasks, image_size)
    _refuse_impossible(recipe, chosen, folds, workers)
    table = check(recipe)
    if table.fingerprint() != run.made_with()["data_fingerprint"]:
        remedy = "bring back the label file that the run began with"
        raise BadInput(Fault(recipe.data.labels, "the labels or their split are not those of the run", remedy))
    clock = Clock(run, run.refit.clock)
    for busy in (Clock(run), clock):
        busy.refuse_a_second_search()
    with cluster.connected():
        need = cluster.per_trial(recipe.resources)
        at_once = _at_once(recipe, need, workers)
        if cluster.has_several_nodes():
            cluster.refuse_unseen_storage(run.path, f"{recipe.data.images}/{table.files.iloc[0]}")
        record = _record(run, recipe, chosen, folds)
        if lacking := [task for task in chosen if run.refit.out_of_fold(task) is None]:
            with clock.ticking():
                memory = recipe.resources.object_store * cluster.smallest_object_store()
                images, table = load(table, recipe.data, recipe.storage, memory)
                shared = Shared(recipe, run, table, images)
                every = [fold for task in lacking for fold in _folds(shared, task, chosen[task], folds)]
                run.refit.write_record(record)  # not before: too many folds would have to be deleted
                failed = _train(every, shared, need, workers, at_once, console)
                for task in lacking:
                    _gather(run, task, folds)
            if failed:
                raise RunFailed("\n".join(failed))
    return run


def _winners(run: RunFolder, recipe: Recipe, tasks: Collection[str], image_size: int | None) -> dict[str, Winner]:
    """Each at the size that its folds are to see: the one asked for, that of a refit under way, or its own."""
    wanted = [task for task in recipe.tasks if not tasks or task in tasks]
    combined = winners.read(run)
    lacking = [*(task for task in wanted if task not in combined), *(task for task in tasks if task not in wanted)]
    found = combined | (winners.choose(run, tasks=lacking) if lacking else {})
    begun = {task: told["config"]["image_size"] for task, told in run.refit.record().get("tasks", {}).items()}
    return {task: _at_size(found[task], image_size or begun.get(task)) for task in wanted}


def _at_size(winner: Winner, image_size: int | None) -> Winner:
    size = image_size or winner.card.image_size
    config = winner.card.config | {"image_size": size}
    return replace(winner, card=replace(winner.card, config=config, image_size=size))


def _refuse_impossible(recipe: Recipe, chosen: dict[str, Winner], folds: int, workers: int) -> None:
    faults = []
    if folds < 2:
        faults.append(Fault(f"--folds {folds}", "each fold is trained on the others' images", "two folds or more"))
    for task, winner in chosen.items():
        faults += filter(None, [_size_fault(recipe, task, winner)])
        batch, most = winner.card.config["batch_size"], recipe.search.max_epochs
        if not 1 <= workers <= batch // 2:
            problem = f"task {task!r} has batches of {batch}, of which each worker needs two images or more"
            faults.append(Fault(f"--workers {workers}", problem, f"1 to {batch // 2} workers"))
        if winner.card.epoch > most:
            problem = f"its winner {winner.trial} has {winner.card.epoch} epochs, this run's trials have {most} at most"
            faults.append(Fault(f"task {task!r}", problem, "combine with another --pick"))
    if faults:
        raise BadInput(faults)


def _size_fault(recipe: Recipe, task: str, winner: Winner) -> Fault | None:
    size, stored, config = winner.card.image_size, recipe.data.image_size, winner.card.config
    if not SMALLEST <= size <= stored:
        problem = f"cannot be refitted at {size} pixels a side: the run's images are stored with {stored}"
        return Fault(f"task {task!r}", problem, f"--image-size {SMALLEST} to {stored}")
    fault = size_fault(config["backbone"], size) or weights_fault(config["backbone"], size, config["weights"])
    return replace(fault, where=f"task {task!r} at {size} pixels, {fault.where}") if fault else None


def _at_once(recipe: Recipe, need: dict[str, float], workers: int) -> int:
    """How many folds may run at a time, as trials do."""
    fitting = cluster.slots(need) // workers
    if not fitting and recipe.search.max_concurrent is None:
        asked = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items() if amount)
        problem = f"this cluster has no room for {workers} workers with {asked} each"
        remedy = "ask for fewer --workers, or set search.max_concurrent where nodes are started on demand"
        raise BadInput(Fault("resources", problem, remedy))
    return recipe.search.max_concurrent or fitting


def _record(run: RunFolder, recipe: Recipe, chosen: dict[str, Winner], folds: int) -> dict[str, Any]:
    """What is made from what; raises :class:`BadInput` if there is a refit of something else."""
    before, folder = run.refit.record(), str(run.refit.path)
    told: dict[str, Any] = {"folds": folds, "seed": recipe.search.seed}
    remedy = f"delete {folder} to begin anew, or combine --from refit what is there"
    faults = [
        Fault(folder, f"{name}: was {before[name]} when the refit began and is {now} now", remedy)
        for name, now in told.items()
        if name in before and before[name] != now
    ]
    now = {task: winner.told(run) for task, winner in chosen.items()}
    for task, winner in now.items():
        was = before.get("tasks", {}).get(task, winner)
        if was != winner:
            problem = f"task {task!r} was made from {_named(was)}, and would be from {_named(winner)} now"
            faults.append(Fault(folder, problem, remedy))
    if faults:
        raise BadInput(faults)
    return told | {"tasks": before.get("tasks", {}) | now}


def _named(winner: dict[str, Any]) -> str:
    return f"{winner['trial']}@{winner['epoch']} at {winner['config']['image_size']} pixels"


def _folds(shared: Shared, task: str, winner: Winner, count: int) -> Iterator[Fold]:
    recipe, table, seed = shared.recipe, shared.table, shared.recipe.search.seed
    assigned = assign(table, task, recipe.data, count, seed)
    for number in range(count):
        folder, held_out = shared.run.refit.fold(task, number), assigned == number
        trained_on = (assigned != NONE) & ~held_out
        labels = labels_of(table, task, trained_on)
        mean, std = shared.images.pixel_statistics(np.flatnonzero(trained_on))
        assignment = Assignment(
            folder=folder,
            task=task,
            config=Config.model_validate(winner.card.config),
            seed=derived_seed(seed, folder.name, number),
            pos_weight=float((labels == 0).sum() / (labels == 1).sum()),
            mean=mean,
            std=std,
            epochs=winner.card.epoch,
            metric="epoch",
            checkpoints=Checkpoints(every=recipe.checkpoints.every, keep=1),
        )
        yield Fold(number, folder, assignment, trained_on, held_out)


class _Trainers:
    """Holds Ray Train's trainers, so that all their workers end with it."""

    def fit(self, fold: Fold, shared: list[ray.ObjectRef], need: dict[str, float], workers: int, tries: int) -> str:
        """Train one fold; why it failed, or nothing."""
        trainer = TorchTrainer(
            partial(train_fold, fold, shared[0]),
            torch_config=TorchConfig(backend="gloo" if workers == 1 else None),  # NCCL would take a GPU's memory
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=need["GPU"] > 0, resources_per_worker=need),
            run_config=RunConfig(
                name=fold.folder.name,
                storage_path=str(fold.folder.path.parent),
                failure_config=FailureConfig(max_failures=tries),
            ),
        )
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            return str(error).strip().splitlines()[-1]


def _train(
    every: list[Fold], shared: Shared, need: dict[str, float], workers: int, at_once: int, console: Console
) -> list[str]:
    """All folds that are not done, so many at a time; returns which failed, and why."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    how = {"num_cpus": 0, "max_concurrency": at_once, "scheduling_strategy": here}
    trainers = ray.remote(**how)(_Trainers).remote()
    told, tries = ray.put(replace(shared, images=shared.images.for_trials())), shared.recipe.search.max_failures
    left = {
        trainers.fit.remote(fold, [told], need, workers, tries): fold
        for fold in every
        if fold.folder.predictions() is None
    }
    failed = []
    try:
        while left:
            (done,), _ = ray.wait(list(left))
            fold = left.pop(done)
            if reason := ray.get(done):
                failed.append(f"{fold.folder.name}: {reason}")
            else:
                _tell(fold, console)
    except KeyboardInterrupt:
        raise Interrupted("stopped; run the same command again to go on where it was") from None
    except RayActorError as error:
        raise RunFailed(f"{str(error).strip().splitlines()[0]}; run the same command again to go on") from None
    finally:
        ray.kill(trainers)
    return failed


def _tell(fold: Fold, console: Console) -> None:
    table = fold.folder.predictions()
    assert table is not None
    precision = average_precision(table.label.to_numpy(), table.logit.to_numpy())
    held_out = f"average precision {precision:.3f} on the {len(table)} images held out"
    console.print(f"{fold.folder.name}: {fold.assignment.epochs} epochs, {held_out}", highlight=False)


def _gather(run: RunFolder, task: str, folds: int) -> None:
    """Put the folds' predictions together, if all are there."""
    parts = [run.refit.fold(task, number).predictions() for number in range(folds)]
    if not any(part is None for part in parts):
        run.refit.write_out_of_fold(task, pd.concat(parts))
