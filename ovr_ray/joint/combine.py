"""From trials to one file: choose the winners, assemble, prove, write."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import BadImage, read_image, read_labels
from ovr_ray.joint import winners
from ovr_ray.joint.export import Format, refuse_lacking_packages, write_exported, write_torchscript
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.joint.refine import PLAIN, Refined, Refinement, refine, validation_images
from ovr_ray.joint.winners import Winner
from ovr_ray.model import SubModel, load_sub_model
from ovr_ray.run_folder import RunFolder

PROVEN_ON = 8
"""How many validation images a joint model is proven on."""


def combine(
    run: RunFolder,
    picks: Mapping[str, str] | None = None,
    tasks: Collection[str] = (),
    output: str | None = None,
    refinement: Refinement = PLAIN,
    formats: Collection[Format] = (),
) -> UPath:
    """Choose every task's winner and write the joint model.

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

    Returns
    -------
    UPath
        The model's file.
    """
    refuse_lacking_packages(formats)
    chosen = winners.choose(run, picks or {}, tasks)
    refined = _refined(run, chosen, refinement) if refinement else {}
    sub_models: list[SubModel | Ensemble] = [
        refined[task].ensemble if task in refined else load_sub_model(winner.checkpoint, winner.card)
        for task, winner in chosen.items()
    ]
    thresholds = [refined[t].threshold if t in refined else winner.card.threshold for t, winner in chosen.items()]
    model = JointModel(list(chosen), sub_models, thresholds).eval()
    file = UPath(output) if output else run.file("joint.pt")
    metadata = _metadata(run, chosen, thresholds)
    told = {task: _told(task_refined) for task, task_refined in refined.items()}
    if told:
        metadata["refinement"] = told
    images = _real_images(run)
    write_torchscript(model, file, metadata, images)
    winners.write(run, file.with_name("winners.json"), chosen, told)
    for form in formats:
        write_exported(model, file.with_suffix(f".{form}"), form, metadata, images)
    return file


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
        "validation": refined.steps,
    }


def _metadata(run: RunFolder, chosen: Mapping[str, Winner], thresholds: list[float]) -> dict[str, Any]:
    return {
        "labels": list(chosen),
        "thresholds": thresholds,
        "winners": {task: f"{winner.trial}, epoch {winner.card.epoch}" for task, winner in chosen.items()},
        "metrics": {task: winner.card.metrics for task, winner in chosen.items()},
        "recipe": run.recipe().dump(),
        **run.made_with(),
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
