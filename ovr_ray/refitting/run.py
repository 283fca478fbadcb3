"""A refit on Ray Train: the winning configs trained again as folds, as many at the same time as fit the cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

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
from ovr_ray.images import load, refuse_moved
from ovr_ray.joint import Winner, choose, read_winners
from ovr_ray.model import average_precision, size_fault, weights_fault
from ovr_ray.recipe import FOLDS, LEAST_IMAGE_SIZE, Checkpoints, Config, Recipe, absolute
from ovr_ray.refitting.fold import Fold, RefitContext, train_fold
from ovr_ray.refitting.folds import NONE, assign, chosen_labels
from ovr_ray.runs import Clock, RefitRecord, RunFolder, WinnerRecord
from ovr_ray.training import Assignment, derived_seed


def refit(
    run: RunFolder,
    folds: int = FOLDS,
    workers: int = 1,
    tasks: Collection[str] = (),
    image_size: int | None = None,
    console: Console | None = None,
    images: str | None = None,
) -> RunFolder:
    """Train every task's winning config again as folds over train and validation, or resume that.

    The winners are those of ``winners.json``, or else of :func:`ovr_ray.joint.choose`. Every fold is trained for as
    many epochs as the winner was, and predicts the images that it held out.

    Parameters
    ----------
    run : RunFolder
    folds : int
        Number of folds.
    workers : int
        Processes per fold; see :class:`ovr_ray.training.Trainer`. Each needs the resources of a trial.
    tasks : collection of str
        Only these tasks; default: all of the recipe.
    image_size : int, optional
        Pixels a side that the folds see; default: those that the refit began with, or those of the winner. A search
        with small images and a refit with large ones costs less than both with large ones.
    console : Console, optional
        Where progress is shown.
    images : str, optional
        Folder in which the run's images are now; default: where its recipe says.

    Returns
    -------
    RunFolder

    Raises
    ------
    BadInput
        If a task is unknown; if folds, workers, pixels or epochs are too many; if the labels have changed; if a search
        or another refit is running; or if there is a refit of something else. Nothing was trained.
    RunFailed
        If a task has no winner yet, or folds failed; gives the reasons.
    Interrupted
        If it was stopped by Ctrl-C; the same call resumes it.
    """
    console = console or Console()
    run = RunFolder(UPath(absolute(str(run.path))))  # Ray Train's workers have a working folder of their own
    recipe, made_with = run.read(images)
    refuse_moved(recipe.data.images, run.split().filename.tolist())
    chosen = _winners(run, recipe, tasks, image_size)
    _refuse_impossible(recipe, chosen, folds, workers)
    table = check(recipe).resumed(run.split(), recipe.data)
    if table.fingerprint() != made_with.data_fingerprint:
        remedy = "bring back the label file that the run began with"
        raise BadInput(Fault(recipe.data.labels, "the labels or their split are not those of the run", remedy))
    clock = Clock(run.refit.clock)
    for busy in (Clock(run.clock), clock):
        busy.refuse_a_second_process()
    with cluster.connected():
        need = cluster.per_trial(recipe.resources)
        at_once = _at_once(recipe, need, workers)
        if cluster.has_several_nodes():
            cluster.refuse_unseen_storage(run.path, f"{recipe.data.images}/{table.files.iloc[0]}")
        record = _record(run, recipe, chosen, folds)
        if lacking := [task for task in chosen if run.refit.out_of_fold(task) is None]:
            with clock.ticking():
                memory = recipe.resources.object_store * cluster.smallest_object_store()
                decoded, table = load(table, recipe.data, recipe.storage, memory)
                context = RefitContext(run, table, decoded)
                every = [fold for task in lacking for fold in _folds(context, recipe, task, chosen[task], folds)]
                run.refit.write_record(record)  # only now: with too many folds it would have to be deleted again
                failed = _train(every, context, need, workers, at_once, recipe.search.max_failures, console)
                for task in lacking:
                    _gather(run, task, folds)
            if failed:
                raise RunFailed("\n".join(failed))
    return run


def _winners(run: RunFolder, recipe: Recipe, tasks: Collection[str], image_size: int | None) -> dict[str, Winner]:
    """Return each winner at the size that its folds see: the given one, that of a begun refit, or its own."""
    wanted = [task for task in recipe.tasks if not tasks or task in tasks]
    combined = read_winners(run)
    lacking = [*(task for task in wanted if task not in combined), *(task for task in tasks if task not in wanted)]
    found = combined | (choose(run, recipe, tasks=lacking) if lacking else {})
    begun = {task: winner.config["image_size"] for task, winner in run.refit.record().tasks.items()}
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
    if not LEAST_IMAGE_SIZE <= size <= stored:
        problem = f"cannot be refitted at {size} pixels a side: the run's images are stored with {stored}"
        return Fault(f"task {task!r}", problem, f"--image-size {LEAST_IMAGE_SIZE} to {stored}")
    fault = size_fault(config["backbone"], size) or weights_fault(config["backbone"], size, config["weights"])
    return replace(fault, where=f"task {task!r} at {size} pixels, {fault.where}") if fault else None


def _at_once(recipe: Recipe, need: cluster.Share, workers: int) -> int:
    """Return how many folds may run at the same time."""
    if workers > 1 and 0 < need.gpus < 1:
        problem = f"would put two workers of a fold on one GPU, which NCCL refuses: each holds {need.gpus:g} of one"
        raise BadInput(Fault(f"--workers {workers}", problem, "--workers 1, or a run whose resources.gpu is 1 or 0"))
    fitting = cluster.slots(need) // workers
    if not fitting and recipe.search.max_concurrent is None:
        problem = f"this cluster has no room for {workers} workers with {need} each"
        remedy = "ask for fewer --workers, or set search.max_concurrent where nodes are started on demand"
        raise BadInput(Fault("resources", problem, remedy))
    return recipe.search.max_concurrent or fitting


def _record(run: RunFolder, recipe: Recipe, chosen: dict[str, Winner], folds: int) -> RefitRecord:
    """Return what the refit is made of; raises :class:`BadInput` if there is a refit of something else."""
    before, folder, seed = run.refit.record(), str(run.refit.path), recipe.search.seed
    remedy = f"delete {folder} to begin anew, or combine --from refit what is there"
    faults = []
    if before.folds not in (0, folds):
        problem = f"folds: was {before.folds} when the refit began and is {folds} now"
        faults.append(Fault(folder, problem, remedy))
    if before.seed not in (None, seed):
        faults.append(Fault(folder, f"seed: was {before.seed} when the refit began and is {seed} now", remedy))
    winners = {task: winner.record(run) for task, winner in chosen.items()}
    for task, winner in winners.items():
        was = before.tasks.get(task, winner)
        if _identity(was) != _identity(winner):
            problem = f"task {task!r} was made from {was}, and would be from {winner} now"
            faults.append(Fault(folder, problem, remedy))
    if faults:
        raise BadInput(faults)
    return RefitRecord(folds=folds, seed=seed, tasks=before.tasks | winners)


def _identity(winner: WinnerRecord) -> dict[str, object]:
    return winner.model_dump(exclude_unset=True)


def _folds(context: RefitContext, recipe: Recipe, task: str, winner: Winner, count: int) -> Iterator[Fold]:
    table, seed, config = context.table, recipe.search.seed, Config.model_validate(winner.card.config)
    assigned = assign(table, task, recipe.data, count, seed)
    for number in range(count):
        folder, held_out = context.run.refit.fold(task, number), assigned == number
        trained_on = (assigned != NONE) & ~held_out
        mean, std = context.images.pixel_statistics(np.flatnonzero(trained_on))
        assignment = Assignment(
            folder=folder,
            task=task,
            config=config,
            seed=derived_seed(seed, folder.name, number),
            train_labels=chosen_labels(table, task, trained_on),
            val_labels=chosen_labels(table, task, held_out),
            mean=mean,
            std=std,
            stored_size=recipe.data.image_size,
            channels=recipe.data.channels,
            epochs=winner.card.epoch,
            max_epochs=recipe.search.max_epochs,
            goal=recipe.tasks[task].threshold,
            augment=config.augment(recipe.augment),
            score_column="epoch",  # no epoch is chosen by what it gives on the images that are held out
            checkpoints=Checkpoints(every=recipe.checkpoints.every, keep=1),
            parts=winner.card.metrics.get("parts", 1),
        )
        yield Fold(number, folder, assignment)


class _Trainers:
    """Holds Ray Train's trainers in one actor, so that all their workers end with it."""

    def fit(
        self, fold: Fold, context: list[ray.ObjectRef], need: cluster.Share, workers: int, max_failures: int
    ) -> str:
        """Train one fold; return why it failed, or ""."""
        trainer = TorchTrainer(
            partial(train_fold, fold, context[0]),
            torch_config=TorchConfig(backend="gloo" if workers == 1 else None),  # NCCL would take a GPU's memory
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=need.gpus > 0, resources_per_worker=need.amounts()
            ),
            run_config=RunConfig(
                name=fold.folder.name,
                storage_path=str(fold.folder.path.parent),
                failure_config=FailureConfig(max_failures=max_failures),
            ),
        )
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            return str(error).strip().splitlines()[-1]


def _train(
    every: list[Fold],
    context: RefitContext,
    need: cluster.Share,
    workers: int,
    at_once: int,
    max_failures: int,
    console: Console,
) -> list[str]:
    """Train all folds that are not complete, ``at_once`` at the same time; return which failed, and why."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": at_once, "scheduling_strategy": here}
    trainers = ray.remote(**options)(_Trainers).remote()
    shared = ray.put(replace(context, images=context.images.for_trials()))
    left = {
        trainers.fit.remote(fold, [shared], need, workers, max_failures): fold
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
                _show(fold, console)
    except KeyboardInterrupt:
        raise Interrupted("stopped; run the same command again to resume") from None
    except RayActorError as error:
        raise RunFailed(f"{str(error).strip().splitlines()[0]}; run the same command again to resume") from None
    finally:
        ray.kill(trainers)
    return failed


def _show(fold: Fold, console: Console) -> None:
    table = fold.folder.predictions()
    assert table is not None
    precision = average_precision(table.label.to_numpy(), table.logit.to_numpy())
    held_out = f"average precision {precision:.3f} on the {len(table)} images held out"
    console.print(f"{fold.folder.name}: {fold.assignment.epochs} epochs, {held_out}", highlight=False)


def _gather(run: RunFolder, task: str, folds: int) -> None:
    """Write the predictions of all folds together, if every fold is complete."""
    tables = [run.refit.fold(task, number).predictions() for number in range(folds)]
    complete = [table for table in tables if table is not None]
    if len(complete) == folds:
        run.refit.write_out_of_fold(task, pd.concat(complete))
