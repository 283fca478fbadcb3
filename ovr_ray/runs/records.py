"""What the JSON files of a run folder hold, as types.

Fields that a file has and a record lacks are ignored, and new fields have defaults: run folders of older and of newer
versions can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Config, Source


@contextmanager
def damage_told(file: UPath) -> Iterator[None]:
    """Raise :class:`BadInput` if what is read from a file within this block is no valid JSON, YAML or record."""
    try:
        yield
    except (yaml.YAMLError, ValueError) as error:
        problem = f"is damaged, or not of this program: {' '.join(str(error).split())}"
        raise BadInput(Fault(str(file), problem, "bring back a copy of it")) from None


class Record(BaseModel):
    """Base of all records: values that are read from, and written to, a JSON file."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, ser_json_inf_nan="constants")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the record that a file holds; raises ValueError if it is damaged."""
        return cls.model_validate_json(text)

    def to_json(self) -> str:
        """Return the content of the record's file; fields that were not given are left out."""
        return self.model_dump_json(indent=1, by_alias=True, exclude_unset=True)


def _whole(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


WholeConfig = Annotated[Config, PlainSerializer(_whole)]
"""A config that is written with every field, given or not: a later version may have other defaults."""


class Status(StrEnum):
    """How far a trial is."""

    UNFINISHED = "unfinished"
    """It has not started, is running, or was interrupted."""
    FINISHED = "finished"
    """It was trained to the last epoch."""
    STOPPED = "stopped"
    """Early stopping ended it."""
    DIVERGED = "diverged"
    """Its loss, or its network's output, was not a finite number."""
    FAILED = "failed"
    """It crashed more often than ``search.max_failures``, or ran out of memory."""

    @property
    def is_scored(self) -> bool:
        """Whether the trial ended with a score that searchers learn from and winners are chosen by."""
        return self in (Status.FINISHED, Status.STOPPED)

    @property
    def is_lost(self) -> bool:
        """Whether the trial ended without a result."""
        return self in (Status.DIVERGED, Status.FAILED)


class TrialRecord(Record):
    """A trial (``trial.json``)."""

    task: str
    number: int
    """Counted from 0 within the task."""
    status: Status
    reason: str = ""
    """Why it diverged, failed, or crashed the last time."""
    failures: int = 0
    """How many times it crashed, over all sessions."""
    config: WholeConfig


class MadeWith(Record):
    """What a search began with (``made_with`` in ``recipe.yaml``)."""

    data_fingerprint: str = ""
    """A hash of file names, labels and split."""
    versions: dict[str, str] = {}
    """Package -> version."""


class Heartbeat(Record):
    """Who works in a run folder, and for how long (``search.json``, ``refit/clock.json``)."""

    seconds: float = 0.0
    """Time spent, over all sessions."""
    time: float = 0.0
    """Time of the last sign of life, in seconds since 1970; 0: the work ended."""
    host: str = ""
    process: int = 0


class Scores(Record):
    """What one step of a refinement gives on the images that it is judged by."""

    f1: float
    average_precision: float
    brier: float


class CalibrationRecord(Record):
    """Calibration of a logit: ``scale * logit + shift``."""

    scale: float = 1.0
    shift: float = 0.0


class EnsembleRecord(Record):
    """How a task's answer is made of several checkpoints, flips and calibration.

    It stands in the metadata of the joint model (``refinement``) and, beside the winner, in ``winners.json``.
    """

    threshold: float
    """Probability from which the answer is yes."""
    members: list[str] = []
    """Names of the checkpoints whose logits are averaged, ``TRIAL@EPOCH``; empty: the winner alone."""
    flip_average: bool = False
    """Whether logits are averaged over the four flips of an image."""
    calibration: CalibrationRecord = CalibrationRecord()
    validation: dict[str, Scores] | None = None
    """Step of the refinement -> scores on the validation split; None for a refit."""
    out_of_fold: dict[str, Scores] | None = None
    """Step of the refinement -> scores on held-out images; None for a search."""


class WinnerRecord(EnsembleRecord):
    """A task's winner, in ``winners.json`` and ``refit.json``."""

    trial: str
    epoch: int
    metrics: dict[str, Any]
    """Of the winning epoch; of a refit the out-of-fold scores, each named ``out_of_fold_…``."""
    config: dict[str, Any]
    """Fields of :class:`~ovr_ray.recipe.Config`."""
    checkpoint: str
    """Path, relative to the run folder where it lies in it."""
    source: Source = Field("search", alias="from")

    def __str__(self) -> str:
        return f"{self.trial}@{self.epoch} at {self.config['image_size']} pixels"


WINNERS: Final = TypeAdapter(dict[str, WinnerRecord])
"""The content of ``winners.json``."""


class RefitRecord(Record):
    """What a refit is made of (``refit/refit.json``)."""

    folds: int = 0
    seed: int | None = None
    tasks: dict[str, WinnerRecord] = {}


Interval = tuple[float, float]
"""The lower and the upper end of a 95 % interval."""


class TaskScore(Record):
    """The scores of one task on one split (in ``metrics.json``).

    :class:`ovr_ray.model.Confusion` defines the metrics. Without a positive image, F1 and average precision are None.
    """

    threshold: float
    images: int
    """Number of images with a label that could be read."""
    positives: int
    prevalence: float | None
    tn: int
    fp: int
    fn: int
    tp: int
    sensitivity: float
    specificity: float
    precision: float
    npv: float
    fpr: float
    fdr: float
    fnr: float
    accuracy: float
    f1: float | None
    mcc: float
    f1_interval: Interval | None
    average_precision: float | None
    average_precision_interval: Interval | None


class Metrics(Record):
    """The scores of a joint model (``metrics.json``)."""

    model: str = ""
    """Path of the joint model."""
    model_digest: str
    """SHA-256 of the joint model's file, in hexadecimal."""
    labels: str = ""
    """Path of the label file."""
    split: Literal["val", "test", "all"] = Field(alias="part")
    """The split that is scored in ``tasks``; "all": other labels than the run's."""
    images: int = 0
    """Number of images that could be read."""
    average_f1: float | None
    """Mean over the tasks with positive images; None if there is no such task."""
    average_precision: float | None = None
    tasks: dict[str, TaskScore]
    validation: dict[str, TaskScore] = {}
    """The scores on the validation split, where thresholds were chosen; empty if the sub-models were trained on it."""
