"""The messages between the driver of a search and its trials, as Tune carries them.

Tune hands a trial a dict and takes dicts of metrics back. These types are the only code that knows the keys of those
dicts, besides the metrics themselves, which are columns of ``epochs.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial as TuneTrial

from ovr_ray import ray_quirks
from ovr_ray.recipe import Config
from ovr_ray.runs import trial_name
from ovr_ray.training import Cause, EarlyEnd, EpochRow

_CAUSE, _REASON, _EPOCHS = "ended_early", "reason", "epochs"


@dataclass(frozen=True)
class TrialKey:
    """The task of a trial, and its number within the task."""

    task: str
    number: int

    @classmethod
    def of(cls, trial: TuneTrial) -> TrialKey:
        """Return the key of one of Tune's trials."""
        return cls(trial.config["task"], trial.config["number"])

    def __str__(self) -> str:
        return trial_name(self.task, self.number)


@dataclass(frozen=True)
class Order:
    """What a trial is to train, up to which epoch."""

    key: TrialKey
    config: Config
    epochs: int

    def to_tune(self) -> dict[str, Any]:
        """Return the config that Tune hands to the trial, and shows to its loggers."""
        return {
            "task": self.key.task,
            "number": self.key.number,
            _EPOCHS: self.epochs,
            **self.config.model_dump(mode="json"),
        }

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Order:
        """Return the order that Tune handed to a trial."""
        fields = {name: value for name, value in given.items() if name in Config.model_fields}
        return cls(TrialKey(given["task"], given["number"]), Config(**fields), given[_EPOCHS])


def epoch_report(row: EpochRow) -> dict[str, Any]:
    """Return the report of an epoch; the epoch is its step in TensorBoard."""
    return ray_quirks.with_step(row, row["epoch"])


def end_report(end: EarlyEnd) -> dict[str, Any]:
    """Return the report of an early end. It has no epoch and no score."""
    return {_CAUSE: end.cause.value, _REASON: end.reason}


def epoch_of(report: Mapping[str, Any]) -> int | None:
    """Return the epoch that a trial reported; None if the report is not one of an epoch."""
    return report.get("epoch")


def end_of(report: Mapping[str, Any]) -> EarlyEnd | None:
    """Return the early end that a trial reported; None if it reported none."""
    return EarlyEnd(Cause(report[_CAUSE]), report[_REASON]) if _CAUSE in report else None
