"""Make one joint model of a run: choose the winners, assemble, prove, write."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, assert_never, get_args

import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault, RunFailed
from ovr_ray.images import BadImage, read_image, read_labels, refuse_moved
from ovr_ray.joint.export import write_exported, write_torchscript
from ovr_ray.joint.metadata import JointMetadata
from ovr_ray.joint.module import Ensemble, JointModel
from ovr_ray.joint.refine import PLAIN, Refined, Refinement, refine, refine_folds, validation_images
from ovr_ray.joint.winners import Winner, last_of, ranked, refuse_unknown
from ovr_ray.model import SubModel, load_sub_model
from ovr_ray.recipe import ExportFormat, Recipe, Source, Split
from ovr_ray.runs import (
    EnsembleRecord,
    Kind,
    RunFolder,
    WinnerRecord,
    beside,
    refuse_foreign,
    winners_beside,
    write_winners,
)
from ovr_ray.storage import location, read_whole, side_by_side

PROVEN_ON: Final = 8
"""Number of validation images that a joint model is proven on."""

SEEN: Final[Mapping[Source, tuple[Split, ...]]] = {"search": ("train",), "refit": ("train", "val")}
"""Splits that the networks of a joint model were trained on, by its source."""


@dataclass(frozen=True)
class _Answer:
    """How a joint model answers one task."""

    network: SubModel | Ensemble
    description: str
    """What the answer is made of, in words."""
    winner: WinnerRecord
    ensemble: EnsembleRecord | None = None
    """Set where the answer is more than the winner's."""

    @property
    def record(self) -> WinnerRecord:
        """The task's entry of ``winners.json``."""
        if self.ensemble is None:
            return self.winner
        given = {name: getattr(self.ensemble, name) for name in self.ensemble.model_fields_set}
        return self.winner.model_copy(update=given)


def combine(
    run: RunFolder,
    picks: Mapping[str, str] | None = None,
    tasks: Collection[str] = (),
    output: str | None = None,
    refinement: Refinement = PLAIN,
    formats: Collection[ExportFormat] = (),
    source: Source = "search",
    images: str | None = None,
) -> UPath:
    """Choose every task's winner, or take its folds, and write the joint model.

    Parameters
    ----------
    run : RunFolder
    picks, tasks
        As in :func:`ovr_ray.joint.winners.ranked`.
    output : str, optional
        File of the model; default: ``joint.pt`` in the run folder. Files beside it are named after it.
    refinement : Refinement
        How to go beyond each task's best checkpoint.
    formats : collection of "onnx" or "pt2"
        Also write the model in these formats, beside the TorchScript file and under its name.
    source : "search" or "refit"
        The joint model of a refit averages each task's folds; there are no trials to pick.
    images : str, optional
        Folder in which the run's images are now; default: where its recipe says.

    Returns
    -------
    UPath
        File of the model.

    Raises
    ------
    BadInput
        If a pick names no task, trial or checkpoint, picks are given for a refit, the images are not there, or a file
        would be replaced that this program did not write.
    RunFailed
        If no trial of a task reached its end, or the refit of a task is incomplete.
    """
    file = location(output) if output else run.joint_model
    exported = {form: beside(file, f".{form}") for form in formats}
    _refuse_other_format(file)
    outputs: dict[UPath, Kind] = {file: "model", winners_beside(file): "winners"}
    refuse_foreign(outputs | dict.fromkeys(exported.values(), "model"))
    recipe, made_with = run.read(images)
    refuse_moved(recipe.data.images, run.split().filename.tolist())
    match source:
        case "search":
            answers = _of_search(run, recipe, picks or {}, tasks, refinement)
        case "refit":
            answers = _of_refit(run, recipe, picks or {}, tasks, refinement)
        case _:
            assert_never(source)
    networks, thresholds = zip(*((a.network, a.record.threshold) for a in answers.values()), strict=True)
    model = JointModel(list(answers), networks, list(thresholds)).eval()
    metadata = JointMetadata(
        labels=list(answers),
        thresholds=list(thresholds),
        winners={task: answer.description for task, answer in answers.items()},
        metrics={task: answer.winner.metrics for task, answer in answers.items()},
        recipe=recipe.dump(),
        data_fingerprint=made_with.data_fingerprint,
        versions=made_with.versions,
        refinement={task: answer.ensemble for task, answer in answers.items() if answer.ensemble},
        trained_on=SEEN[source],
    )
    proof = _real_images(run, recipe)
    write_torchscript(model, file, metadata, proof)
    write_winners(file, {task: answer.record for task, answer in answers.items()})
    for form, other in exported.items():
        digest = hashlib.sha256(read_whole(file)).hexdigest()
        write_exported(model, other, form, metadata.model_copy(update={"torchscript": digest}), proof)
    return file


def _refuse_other_format(file: UPath) -> None:
    form, name = file.suffix.lower().removeprefix("."), file.stem
    if form in get_args(ExportFormat):
        problem = f"ends in {file.suffix}, but this file is always TorchScript"
        remedy = f"--output {name}.pt --format {form} writes {name}.pt and {name}.{form}"
        raise BadInput(Fault(f"--output {file}", problem, remedy))


def _of_search(
    run: RunFolder, recipe: Recipe, picks: Mapping[str, str], tasks: Collection[str], wanted: Refinement
) -> dict[str, _Answer]:
    chosen = {task: best[: wanted.top_k] for task, best in ranked(run, recipe, picks, tasks).items()}
    refined = _refined(run, recipe, chosen, wanted) if wanted else {}
    answers = {}
    for task, (winner, *_) in chosen.items():
        description, record = f"{winner.trial}, epoch {winner.card.epoch}", winner.record(run)
        if task in refined:
            own = refined[task]
            ensemble = _record(own).model_copy(update={"validation": own.steps})
            answers[task] = _Answer(own.ensemble, description, record, ensemble)
        else:
            answers[task] = _Answer(load_sub_model(winner.checkpoint, winner.card), description, record)
    return answers


def _of_refit(
    run: RunFolder, recipe: Recipe, picks: Mapping[str, str], tasks: Collection[str], wanted: Refinement
) -> dict[str, _Answer]:
    if picks or wanted.top_k > 1:
        problem = "has each task's folds: there are no trials to choose from"
        raise BadInput(Fault("--from refit", problem, "leave out --pick and --top-k"))
    refuse_unknown(recipe, tasks)
    refit = run.refit.record()
    answers, lacking = {}, []
    for task in [name for name in recipe.tasks if not tasks or name in tasks]:
        out_of_fold = run.refit.out_of_fold(task)
        folds = side_by_side(last_of, [run.refit.fold(task, number) for number in range(refit.folds)])
        members = [fold for fold in folds if fold]
        if out_of_fold is None or len(members) < len(folds):
            lacking.append(f"task {task!r} has no whole refit; run ovr-ray refit {run.path} first")
            continue
        sub_models = [load_sub_model(member.checkpoint, member.card) for member in members]
        names = [member.name for member in members]
        own = refine_folds(names, sub_models, wanted, recipe.tasks[task].threshold, out_of_fold)
        winner, last = refit.tasks[task], list(own.steps.values())[-1]
        metrics = {f"out_of_fold_{name}": score for name, score in last.model_dump().items()}
        size = winner.config["image_size"]
        description = f"mean of {len(members)} folds of {winner.trial}, {winner.epoch} epochs each at {size} pixels"
        record = winner.model_copy(update={"source": "refit", "metrics": metrics})
        ensemble = _record(own).model_copy(update={"out_of_fold": own.steps})
        answers[task] = _Answer(own.ensemble, description, record, ensemble)
    if lacking:
        raise RunFailed("\n".join(lacking))
    return answers


def _refined(
    run: RunFolder, recipe: Recipe, chosen: Mapping[str, list[Winner]], wanted: Refinement
) -> dict[str, Refined]:
    split = run.split()
    tasks = {task: recipe.tasks[task] for task in chosen}
    table = read_labels(recipe.data.model_copy(update={"limit": None}), tasks, with_split=False)
    table = table.named(split.filename[split.part == "val"])
    images, rows = validation_images(recipe.data, table.files.tolist())
    refined = {}
    for task, winners in chosen.items():
        members = [load_sub_model(winner.checkpoint, winner.card) for winner in winners]
        truth = table.labels[task].to_numpy()[rows]
        names = [winner.name for winner in winners]
        refined[task] = refine(names, members, wanted, tasks[task].threshold, images, truth)
    return refined


def _record(refined: Refined) -> EnsembleRecord:
    return EnsembleRecord(
        threshold=refined.threshold,
        members=refined.members,
        flip_average=refined.ensemble.flip_average,
        calibration=refined.calibration,
    )


def _real_images(run: RunFolder, recipe: Recipe) -> list[torch.Tensor]:
    data, split, images = recipe.data, run.split(), list[torch.Tensor]()
    for filename in split.filename[split.part == "val"]:
        try:
            images.append(torch.from_numpy(read_image(f"{data.images}/{filename}", data).copy()))
        except BadImage:
            continue  # was skipped in training too
        if len(images) == PROVEN_ON:
            break
    if not images:
        problem = (
            "none of the run's validation images can be read; a joint model is proven on some before it is written"
        )
        raise BadInput(Fault(data.images, problem, "bring them back, or say where they are now: --images DIR"))
    return images
