"""Improvements on a task's best checkpoint: more checkpoints, flips, calibration; and the scores of each step.

Each step is scored, and calibration and threshold are fitted, on logits of the validation split; for a refit, on the
logits that each fold gave to the images that it held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import numpy as np
import pandas as pd
import torch

from ovr_ray.errors import BadInput, Fault
from ovr_ray.images import BadImage, read_image
from ovr_ray.joint.module import Ensemble, views
from ovr_ray.model import SubModel, average_precision, choose_threshold, f1_at
from ovr_ray.recipe import Calibration, Data, ThresholdGoal
from ovr_ray.runs import CalibrationRecord, Scores

BATCH: Final = 64
"""Images that are predicted at a time."""


@dataclass(frozen=True)
class Refinement:
    """How a joint model goes beyond the best checkpoint of each task.

    Attributes
    ----------
    top_k : int
        Average the logits of the best checkpoints of this many trials of a task.
    flip_average : bool
        Average the logits of the four flips of an image.
    calibrate : "platt", "temperature" or None
        Calibrate the probabilities by a logistic regression on the logit, with an intercept (Platt, 1999) or without
        (Guo et al., 2017). Decisions do not change.
    """

    top_k: int = 1
    flip_average: bool = False
    calibrate: Calibration | None = None

    def __bool__(self) -> bool:
        return self != PLAIN


PLAIN: Final = Refinement()
"""No refinement: one checkpoint per task, one view of each image."""


@dataclass(frozen=True)
class Refined:
    """A task's ensemble, its threshold, and the scores of every step.

    Attributes
    ----------
    members : list of str
        Names of the checkpoints, ``TRIAL@EPOCH``.
    ensemble : Ensemble
    threshold : float
        Decision threshold for the ensemble's probability.
    steps : dict of str to Scores
        Step of the refinement -> scores on validation, or out of fold.
    """

    members: list[str]
    ensemble: Ensemble
    threshold: float
    steps: dict[str, Scores]

    @property
    def calibration(self) -> CalibrationRecord:
        """Calibration of the ensemble's logit."""
        return CalibrationRecord(scale=self.ensemble.scale, shift=self.ensemble.shift)


def validation_images(data: Data, filenames: Sequence[str]) -> tuple[torch.Tensor, np.ndarray]:
    """Return the images that can be read, uint8 (N, C, S, S), and their places in the list, int64 (N).

    Raises
    ------
    BadInput
        If no image can be read.
    """
    images, places = [], []
    for place, filename in enumerate(filenames):
        try:
            images.append(torch.from_numpy(read_image(f"{data.images}/{filename}", data, data.image_size).copy()))
            places.append(place)
        except BadImage:
            continue  # was skipped in training too
    if not images:
        problem = "none of the run's validation images can be read; a joint model is proven on some"
        raise BadInput(Fault(data.images, problem, "bring them back, or say where they are now: --images DIR"))
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
        Names of the members.
    members : sequence of SubModel
        The best first.
    wanted : Refinement
    goal : ThresholdGoal
    images : Tensor of uint8, (N, C, S, S)
    truth : ndarray, (N)
        0, 1, or NaN where the label is unknown.
    """
    known = np.isfinite(truth)
    truth = truth[known]
    logits = _logits(members, images[torch.from_numpy(known)], wanted.flip_average)
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
        From :meth:`RefitFolder.out_of_fold <ovr_ray.runs.RefitFolder.out_of_fold>`.
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
    """Calibrate the last step, if that is wanted, and choose the threshold for it."""
    scale, shift = 1.0, 0.0
    if wanted.calibrate:
        last = list(steps.values())[-1]
        scale, shift = _calibration(last, truth, wanted.calibrate)
        steps[wanted.calibrate] = scale * last + shift
    scores = {name: _scores(truth, step, goal) for name, step in steps.items()}
    threshold = choose_threshold(truth, _probability(list(steps.values())[-1]), goal)
    return Refined(names, Ensemble(list(members), wanted.flip_average, scale, shift), threshold, scores)


@torch.inference_mode()
def _logits(members: Sequence[SubModel], images: torch.Tensor, flipped: bool) -> np.ndarray:
    """Return the logits, float64 (members, views, N)."""
    logits = []
    for batch in images.split(BATCH):
        seen = views(batch, flipped)
        logits.append(torch.stack([member(seen).view(-1, len(batch)) for member in members]))
    return torch.cat(logits, 2).double().numpy()


def _calibration(logit: np.ndarray, truth: np.ndarray, method: Calibration) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    match method:
        case "platt":
            intercept = True
        case "temperature":
            intercept = False
        case _:
            assert_never(method)
    fitted = LogisticRegression(C=np.inf, fit_intercept=intercept).fit(logit[:, None], truth)
    scale, shift = float(fitted.coef_[0, 0]), float(np.ravel(fitted.intercept_)[0])
    return (scale, shift) if scale > 0 else (1.0, 0.0)  # a calibration must not reverse the order of the images


def _probability(logit: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logit).float().sigmoid().numpy()


def _scores(truth: np.ndarray, logit: np.ndarray, goal: ThresholdGoal) -> Scores:
    from sklearn.metrics import brier_score_loss

    probability = _probability(logit)
    return Scores(
        f1=f1_at(choose_threshold(truth, probability, goal))(truth, probability),
        average_precision=average_precision(truth, probability),
        brier=float(brier_score_loss(truth, probability)),
    )
