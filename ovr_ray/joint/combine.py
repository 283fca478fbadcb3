"""From trials to one file: choose the winners, assemble, prove, write."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import BadImage, read_image
from ovr_ray.joint import winners
from ovr_ray.joint.export import write_torchscript
from ovr_ray.joint.module import JointModel
from ovr_ray.joint.winners import Winner
from ovr_ray.model import load_sub_model
from ovr_ray.run_folder import RunFolder

PROVEN_ON = 8
"""How many validation images a joint model is proven on."""


def combine(
    run: RunFolder,
    picks: Mapping[str, str] | None = None,
    tasks: Collection[str] = (),
    output: str | None = None,
) -> UPath:
    """Choose every task's winner and write the joint model.

    Parameters
    ----------
    run : RunFolder
    picks, tasks
        As in :func:`ovr_ray.joint.winners.choose`.
    output : str, optional
        Where the model goes; default: ``joint.pt`` in the run folder.

    Returns
    -------
    UPath
        The model's file.
    """
    chosen = winners.choose(run, picks or {}, tasks)
    sub_models = [load_sub_model(winner.checkpoint, winner.card) for winner in chosen.values()]
    model = JointModel(list(chosen), sub_models, [winner.card.threshold for winner in chosen.values()]).eval()
    file = UPath(output) if output else run.file("joint.pt")
    write_torchscript(model, file, _metadata(run, chosen), _real_images(run))
    winners.write(run, chosen)
    return file


def _metadata(run: RunFolder, chosen: Mapping[str, Winner]) -> dict[str, Any]:
    return {
        "labels": list(chosen),
        "thresholds": [winner.card.threshold for winner in chosen.values()],
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
