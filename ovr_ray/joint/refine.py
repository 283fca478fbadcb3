"""Better than a task's best checkpoint alone: more checkpoints, flips, calibration; and what each of them gives.

All of it is judged and fitted on the validation part, on logits that are computed once; or, of a refit, on what each
fold says of the images that it held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import BadImage, read_image
from ovr_ray.joint.module import Ensemble, views
from ovr_ray.model import SubModel, average_precision, choose_threshold, f1_at
from ovr_ray.recipe import Data, ThresholdGoal

Calibration = Literal["platt", "temperature"]

BATCH = 64


@dataclass(frozen=True)
class Refinement:
    """What a joint model does beyond asking each task's best checkpoint once.

    Attributes
    ----------
    top_k : int
        Logits are averaged over the best checkpoints of so many trials of a task.
    flip_average : bool
        And over the four flips of an image.
    calibrate : "platt", "temperature" or None
        Make probabilities frequencies: logistic regression on the logit, with an intercept (Platt, 1999) or without
        (Guo et al., 2017). Decisions stay what they are.
    """

    top_k: int = 1
    flip_average: bool = False
    calibrate: Calibration | None = None

    def __bool__(self) -> bool:
        return self != PLAIN


PLAIN = Refinement()
"""Each task's best checkpoint, asked once."""


@dataclass(frozen=True)
class Refined:
    """A task's ensemble, the threshold that suits it, and a row for every step on the way."""

    members: list[str]
    """Names of the checkpoints, TRIAL@EPOCH."""
    ensemble: Ensemble
    threshold: float
    steps: dict[str, dict[str, float]]
    """Step -> F1 at the threshold, average precision and Brier score on validation, or out of fold."""


def validation_images(data: Data, filenames: Sequence[str]) -> tuple[torch.Tensor, np.ndarray]:
    """The images that can be read, uint8 (N, C, S, S), and their places in the list.

    Raises
    ------
    BadInput
        If there is none.
    """
    images, places = [], []
    for place, filename in enumerate(filenames):
        try:
            images.append(torch.from_numpy(read_image(f"{data.images}/{filename}", data.color, data.image_size).copy()))
            places.append(place)
        except BadImage:
            continue  # was skipped in training too
    if not images:
        problem = "none of the run's validation images can be read; a joint model is proven on some"
        raise BadInput(Fault(data.images, problem, "bring the images back to where they were"))
    return torch.stack(images), np.array(places)


def refine(
    names: list[str],
    members: Sequence[SubModel],
    wanted: Refinement,
    goal: ThresholdGoal,
    images: torch.Tensor,
    truth: np.ndarray,
) -> Refined:
    """Assemble a task's ensemble step by step.

    Parameters
    ----------
    names : list of str
        Of the members.
    members : sequence of SubModel
        The best first.
    wanted : Refinement
    goal : ThresholdGoal
    images : Tensor of uint8, (N, C, S, S)
    truth : ndarray, (N)
        0, 1, or NaN where an image does not count for the task.
    """
    counts = np.isfinite(truth)
    truth = truth[counts]
    logits = _logits(members, images[torch.from_numpy(counts)], wanted.flip_average)
    steps = {"best checkpoint": logits[0, 0]}
    if len(members) > 1:
        steps[f"mean of {len(members)} checkpoints"] = logits[:, 0].mean(0)
    if wanted.flip_average:
        steps["mean of four flips"] = logits.mean((0, 1))
    return _fitted(names, members, wanted, goal, steps, truth)


def refine_folds(
    names: list[str],
    members: Sequence[SubModel],
    wanted: Refinement,
    goal: ThresholdGoal,
    out_of_fold: pd.DataFrame,
) -> Refined:
    """Assemble the mean of a task's folds; threshold and calibration are fitted out of fold.

    Parameters
    ----------
    names, members, wanted, goal
        As in :func:`refine`; a member is a fold.
    out_of_fold : DataFrame
        As :meth:`~ovr_ray.run_folder.RefitFolder.out_of_fold` gives it.
    """
    steps = {"a fold alone": out_of_fold.logit.to_numpy(float, copy=True)}
    if wanted.flip_average:
        steps["mean of four flips"] = out_of_fold.logit_flips.to_numpy(float, copy=True)
    return _fitted(names, members, wanted, goal, steps, out_of_fold.label.to_numpy(float))


def _fitted(
    names: list[str],
    members: Sequence[SubModel],
    wanted: Refinement,
    goal: ThresholdGoal,
    steps: dict[str, np.ndarray],
    truth: np.ndarray,
) -> Refined:
    """The last step calibrated, if that is wanted, and the threshold for it."""
    scale, shift = 1.0, 0.0
    if wanted.calibrate:
        last = list(steps.values())[-1]
        scale, shift = _calibration(last, truth, wanted.calibrate)
        steps[wanted.calibrate] = scale * last + shift
    scores = {name: _scores(truth, step, goal) for name, step in steps.items()}
    threshold = choose_threshold(truth, _probability(list(steps.values())[-1]), goal)
    return Refined(names, Ensemble(list(members), wanted.flip_average, scale, shift), threshold, scores)


def table_of(steps: Mapping[str, Mapping[str, Mapping[str, float]]], where: str = "on validation") -> Table:
    """For people: what each step of each task gave, from task -> step -> score."""
    note = f"{where}, where thresholds and calibration were fitted; a lower Brier score is better"
    table = Table(caption=note, caption_justify="left", box=SIMPLE_HEAD)
    for column in ("task", "", "F1", "AP", "Brier"):
        table.add_column(column, justify="left" if column in ("task", "") else "right", no_wrap=True)
    for task, scores in steps.items():
        for i, (step, score) in enumerate(scores.items()):
            table.add_row("" if i else task, step, *(f"{value:.3f}" for value in score.values()))
    return table


@torch.inference_mode()
def _logits(members: Sequence[SubModel], images: torch.Tensor, flipped: bool) -> np.ndarray:
    """Float64 (members, views, N)."""
    seen = views(images, flipped)
    rows = [[torch.cat([member(batch) for batch in view.split(BATCH)]) for view in seen] for member in members]
    return torch.stack([torch.stack(row) for row in rows]).double().numpy()


def _calibration(logit: np.ndarray, truth: np.ndarray, how: Calibration) -> tuple[float, float]:
    fitted = LogisticRegression(C=np.inf, fit_intercept=how == "platt").fit(logit[:, None], truth)
    scale, shift = float(fitted.coef_[0, 0]), float(np.ravel(fitted.intercept_)[0])
    return (scale, shift) if scale > 0 else (1.0, 0.0)  # a model that ranks backwards is not to be turned around


def _probability(logit: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logit).float().sigmoid().numpy()


def _scores(truth: np.ndarray, logit: np.ndarray, goal: ThresholdGoal) -> dict[str, Any]:
    probability = _probability(logit)
    return {
        "f1": f1_at(choose_threshold(truth, probability, goal))(truth, probability),
        "average_precision": average_precision(truth, probability),
        "brier": float(brier_score_loss(truth, probability)),
    }
