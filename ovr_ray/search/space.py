"""Convert a task's search space to Optuna's, and its draws to configs."""

from __future__ import annotations

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ovr_ray.recipe import Choice, Config, Domain, LogUniform, RandInt, Task


class TaskSpace:
    """The search space of a task.

    Choices are searched by their place in the list, because Optuna compares categories and a staged schedule is a
    mapping.

    Parameters
    ----------
    task : Task
    image_size : int
        Image size of trials whose config gives none.
    """

    def __init__(self, task: Task, image_size: int) -> None:
        self._domains = task.varied()
        self._fixed = {"image_size": image_size} | {k: v for k, v in task.fixed().items() if v is not None}
        self._fixed |= {"weights": None} if "weights" in task.fixed() and task.fixed()["weights"] is None else {}
        self._default = task.default
        self.has_default = bool(task.default.model_fields_set)
        """Whether the recipe gives the config of the first trial."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions that Optuna draws from, by field."""
        return {name: _distribution(domain) for name, domain in self._domains.items()}

    def first(self) -> Config:
        """Return the config of the first trial: the default, or the middle of the domain where that excludes it."""
        varied = {}
        for name, domain in self._domains.items():
            default = getattr(self._default, name)
            varied[name] = default if default in domain else _middle(domain)
        return Config(**self._fixed | varied)

    def outside(self, config: Config) -> list[str]:
        """Return the varied fields whose value in this config lies outside of the space."""
        return [name for name, domain in self._domains.items() if getattr(config, name) not in domain]

    def config(self, drawn: dict[str, Any]) -> Config:
        """Return the config of Optuna's parameters."""
        varied = {
            name: domain.choice[drawn[name]] if isinstance(domain, Choice) else drawn[name]
            for name, domain in self._domains.items()
        }
        return Config(**self._fixed | varied)

    def parameters(self, config: Config) -> dict[str, Any]:
        """Return Optuna's parameters of a config that lies in this space; the inverse of :meth:`config`."""
        values = {name: getattr(config, name) for name in self._domains}
        return {
            name: domain.choice.index(values[name]) if isinstance(domain, Choice) else values[name]
            for name, domain in self._domains.items()
        }


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(range(len(domain.choice)))
    low, high = domain.bounds
    if isinstance(domain, RandInt) or isinstance(low, int):
        return IntDistribution(int(low), int(high), log=isinstance(domain, LogUniform))
    return FloatDistribution(low, high, log=isinstance(domain, LogUniform))


def _middle(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return domain.choice[0]
    low, high = domain.bounds
    middle = math.sqrt(low * high) if isinstance(domain, LogUniform) else (low + high) / 2
    return round(middle) if isinstance(low, int) and isinstance(high, int) else middle
