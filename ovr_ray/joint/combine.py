"""From trials to one file: choose the winners, assemble, prove, write."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.images import BadImage, read_image, read_labels
from ovr_ray.joint import winners
from ovr_ray.joint.export import Format, refuse_lacking_packages, write_exported, write_torchscript
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.joint.refine import PLAIN, Refined, Refinement, refine, refine_folds, validation_images
from ovr_ray.joint.winners import Winner
from ovr_ray.model import SubModel, load_sub_model
from ovr_ray.run_folder import RunFolder, write_whole

PROVEN_ON = 8
"""How many validation images a joint model is proven on."""

Source = Literal["search", "refit"]
"""What a joint model is made of: each task's best checkpoint, or the folds that were made from it."""


@dataclass(frozen=True)
class _Part:
    """A task's part of a joint model, and what is told of it."""

    model: SubModel | Ensemble
    threshold: float
    name: str
    metrics: dict[str, Any]
    winner: dict[str, Any]
    """As ``winners.json`` has it."""
    refinement: dict[str, Any] | None = None


def combine(
    run: RunFolder,
    picks: Mapping[str, str] | None = None,
    tasks: Collection[str] = (),
    output: str | None = None,
    refinement: Refinement = PLAIN,
    formats: Collection[Format] = (),
    source: Source = "search",
) -> UPath:
    """Choose every task's winner, or take its folds, and write the joint model.

    Parameters
    ----------
    run : RunFolder
    picks, tasks
        As in :func:`ovr_ray.joint.winners.choose`.
    output : str, optional
        Where the model goes; default: ``joint.pt`` in the run folder.
    refinement : Refinement
        More than each task's best checkpoint.
    formats : collection of str
        Write it as these, too, beside the TorchScript file and under its name.
    source : "search" or "refit"
        Of a refit the joint model has the mean of each task's folds; there is nothing to pick then.

    Returns
    -------
    UPath
        The model's file.

    Raises
    ------
    BadInput
        If a pick names no task, trial or checkpoint, or picks are given for a refit.
    RunFailed
        If no trial of a task came to its end, or a task's refit did not.
    """
    refuse_lacking_packages(formats)
    if source == "refit":
        parts = _of_refit(run, picks or {}, tasks, refinement)
    else:
        parts = _of_search(run, picks or {}, tasks, refinement)
    model = JointModel(list(parts), [p.model for p in parts.values()], [p.threshold for p in parts.values()]).eval()
    file = UPath(output) if output else run.file("joint.pt")
    metadata = _metadata(run, parts) | {"trained_on": ["train", "val"] if source == "refit" else ["train"]}
    images = _real_images(run)
    write_torchscript(model, file, metadata, images)
    told = {task: part.winner | (part.refinement or {}) for task, part in parts.items()}
    write_whole(file.with_name("winners.json"), json.dumps(told, indent=1))
    for form in formats:
        write_exported(model, file.with_suffix(f".{form}"), form, metadata, images)
    return file


def _of_search(
    run: RunFolder, picks: Mapping[str, str], tasks: Collection[str], refinement: Refinement
) -> dict[str, _Part]:
    chosen = winners.choose(run, picks, tasks)
    refined = _refined(run, chosen, refinement) if refinement else {}
    parts = {}
    for task, winner in chosen.items():
        about = f"{winner.trial}, epoch {winner.card.epoch}", winner.card.metrics, winner.told(run)
        if task in refined:
            own = refined[task]
            parts[task] = _Part(own.ensemble, own.threshold, *about, _told(own) | {"validation": own.steps})
        else:
            parts[task] = _Part(load_sub_model(winner.checkpoint, winner.card), winner.card.threshold, *about)
    return parts


def _of_refit(
    run: RunFolder, picks: Mapping[str, str], tasks: Collection[str], refinement: Refinement
) -> dict[str, _Part]:
    if picks or refinement.top_k > 1:
        problem = "has each task's folds: there are no trials to choose from"
        raise BadInput(Fault("--from refit", problem, "leave out --pick and --top-k"))
    recipe, record = run.recipe(), run.refit.record()
    winners.refuse_unknown(recipe, tasks)
    parts, lacking = {}, []
    for task in [name for name in recipe.tasks if not tasks or name in tasks]:
        out_of_fold = run.refit.out_of_fold(task)
        folds = [winners.last_of(run.refit.fold(task, number)) for number in range(record.get("folds", 0))]
        members = [fold for fold in folds if fold]
        if out_of_fold is None or len(members) < len(folds):
            lacking.append(f"task {task!r} has no whole refit; run ovr-ray refit {run.path} first")
            continue
        names = [f"{member.trial}@{member.card.epoch}" for member in members]
        sub_models = [load_sub_model(member.checkpoint, member.card) for member in members]
        own = refine_folds(names, sub_models, refinement, recipe.tasks[task].threshold, out_of_fold)
        winner, scores = record["tasks"][task], list(own.steps.values())[-1]
        metrics = {f"out_of_fold_{name}": score for name, score in scores.items()}
        how = f"{winner['epoch']} epochs each at {winner['config']['image_size']} pixels"
        name = f"mean of {len(members)} folds of {winner['trial']}, {how}"
        told = winner | {"from": "refit", "metrics": metrics}
        parts[task] = _Part(own.ensemble, own.threshold, name, metrics, told, _told(own) | {"out_of_fold": own.steps})
    if lacking:
        raise RunFailed("\n".join(lacking))
    return parts


def _refined(run: RunFolder, chosen: Mapping[str, Winner], wanted: Refinement) -> dict[str, Refined]:
    recipe = run.recipe()
    split = run.split()
    tasks = {task: recipe.tasks[task] for task in chosen}
    table = read_labels(recipe.data.model_copy(update={"limit": None}), tasks, split_too=False)
    table = table.named(split.filename[split.part == "val"])
    images, rows = validation_images(recipe.data, table.files.tolist())
    refined = {}
    for task, winner in chosen.items():
        members = [winner, *winners.runners_up(run, task, winner, wanted.top_k - 1)]
        sub_models = [load_sub_model(member.checkpoint, member.card) for member in members]
        names = [f"{member.trial}@{member.card.epoch}" for member in members]
        truth = table.labels[task].to_numpy()[rows]
        refined[task] = refine(names, sub_models, wanted, tasks[task].threshold, images, truth)
    return refined


def _told(refined: Refined) -> dict[str, Any]:
    ensemble = refined.ensemble
    return {
        "threshold": refined.threshold,
        "members": refined.members,
        "flip_average": ensemble.flip_average,
        "calibration": {"scale": ensemble.scale, "shift": ensemble.shift},
    }


def _metadata(run: RunFolder, parts: Mapping[str, _Part]) -> dict[str, Any]:
    refinement = {task: part.refinement for task, part in parts.items() if part.refinement}
    return {
        "labels": list(parts),
        "thresholds": [part.threshold for part in parts.values()],
        "winners": {task: part.name for task, part in parts.items()},
        "metrics": {task: part.metrics for task, part in parts.items()},
        "recipe": run.recipe().dump(),
        **run.made_with(),
        **({"refinement": refinement} if refinement else {}),
    }


def _real_images(run: RunFolder) -> list[torch.Tensor]:
    data = run.recipe().data
    split, images = run.split(), []
    for filename in split.filename[split.part == "val"]:
        try:
            images.append(torch.from_numpy(read_image(f"{data.images}/{filename}", data.color).copy()))
        except BadImage:
            continue  # was skipped in training too
        if len(images) == PROVEN_ON:
            break
    if not images:
        problem = (
            "none of the run's validation images can be read; a joint model is proven on some before it is written"
        )
        raise BadInput(Fault(data.images, problem, "bring the images back to where they were"))
    return images
