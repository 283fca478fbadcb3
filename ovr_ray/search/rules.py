"""Which trials of a task may be trained further, and to which epoch.

``none`` and ``asha`` let every trial go to the last epoch (ASHA, a scheduler of Ray's, stops weak ones on the way).
``halving`` is successive halving by promotion. Its decisions depend on the recorded scores alone, not on which trial
ended first:

- The trials of a task come in waves of :data:`WAVE`, in the order of their numbers. All trials of a wave are trained to
  the first rung. The best 1 in ``search.reduction`` of them are trained on to the second rung, from their checkpoints,
  and so on to ``search.max_epochs``. The others wait at their rung.
- A wave is settled when none of its trials may be trained further. Waves overlap, so that slots need not be idle: the
  draws of a wave know all earlier waves but the last :data:`OVERLAP`, which may still run.

Successive halving is of Jamieson and Talwalkar (2016), "Non-stochastic best arm identification and hyperparameter
optimization", with the rungs of Li et al. (2018), "Hyperband".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count, pairwise, takewhile
from typing import Final, Protocol, assert_never

from ovr_ray.recipe import Search

WAVE: Final = 12
"""Number of trials of a task that are compared with each other."""

OVERLAP: Final = 2
"""Number of waves just before a wave that its draws do not know."""


def rungs(search: Search) -> list[int]:
    """Return the epochs at which early stopping compares trials."""
    match search.scheduler:
        case "none":
            return []
        case "asha" | "halving":
            every = (search.grace_epochs * search.reduction**k for k in count())
            return list(takewhile(lambda epoch: epoch < search.max_epochs, every))
        case _:
            assert_never(search.scheduler)


class Begun(Protocol):
    """What a rule looks at of a trial that has begun."""

    @property
    def scores(self) -> Mapping[int, float]:
        """Epoch -> score, of the epochs so far."""

    @property
    def epoch(self) -> int:
        """The last epoch so far; 0 before the first."""

    @property
    def is_ended(self) -> bool:
        """Whether it was trained to its goal, was stopped, or was lost."""

    @property
    def is_lost(self) -> bool:
        """Whether it ended without a result."""


class Rule(Protocol):
    """A rule for one task; every method takes all trials of the task that have begun, by number."""

    def goal(self, trials: Sequence[Begun], number: int) -> int:
        """Return the epoch to which a trial may be trained by now."""

    def unsettled(self, trials: Sequence[Begun]) -> list[int]:
        """Return the numbers of all trials that may be trained further, in the order in which they should be."""

    def may_begin(self, trials: Sequence[Begun]) -> bool:
        """Return whether the next trial may be drawn now."""

    def known(self, trials: Sequence[Begun]) -> list[int]:
        """Return the numbers of the ended trials that the draw of the next trial learns from."""


def rule_of(search: Search, budget: int) -> Rule:
    """Return the rule for a task that will have ``budget`` trials."""
    match search.scheduler:
        case "none" | "asha":
            return ToTheEnd(search.max_epochs)
        case "halving":
            return Waves([*rungs(search), search.max_epochs], search.reduction, budget)
        case _:
            assert_never(search.scheduler)


class ToTheEnd:
    """Every trial may be trained to the last epoch, and the next draw knows every trial that has ended."""

    def __init__(self, max_epochs: int) -> None:
        self._max_epochs = max_epochs

    def goal(self, trials: Sequence[Begun], number: int) -> int:
        """Return the last epoch."""
        return self._max_epochs

    def unsettled(self, trials: Sequence[Begun]) -> list[int]:
        """Return the trials that have not ended."""
        return [number for number, trial in enumerate(trials) if not trial.is_ended]

    def may_begin(self, trials: Sequence[Begun]) -> bool:
        """Return True."""
        return True

    def known(self, trials: Sequence[Begun]) -> list[int]:
        """Return the trials that have ended."""
        return [number for number, trial in enumerate(trials) if trial.is_ended]


class Waves:
    """Successive halving by promotion, in waves.

    Parameters
    ----------
    stages : sequence of int
        The rungs and the last epoch, in ascending order.
    reduction : int
        At each rung, 1 in this many trials goes on, rounded up.
    budget : int
        Number of trials that the task will have.
    """

    def __init__(self, stages: Sequence[int], reduction: int, budget: int) -> None:
        self._stages, self._reduction, self._budget = stages, reduction, budget
        self._settled = 0  # the number of waves, from the first on, that are known to be settled

    def goal(self, trials: Sequence[Begun], number: int) -> int:
        """Return the last stage that a trial has been promoted to."""
        return self._goals(trials, number // WAVE)[number % WAVE]

    def unsettled(self, trials: Sequence[Begun]) -> list[int]:
        """Return the trials that are below their goal, those of earlier waves first."""
        waves = range(self._count_settled(trials), math.ceil(len(trials) / WAVE))
        return [number for wave in waves for number in self._going_on(trials, wave)]

    def may_begin(self, trials: Sequence[Begun]) -> bool:
        """Return whether all waves are settled that the next draw learns from."""
        return self._count_settled(trials) >= self._count_known(trials)

    def known(self, trials: Sequence[Begun]) -> list[int]:
        """Return the trials of all waves but the last :data:`OVERLAP` before the wave of the next trial."""
        return list(range(WAVE * self._count_known(trials)))

    def _count_known(self, trials: Sequence[Begun]) -> int:
        return max(0, len(trials) // WAVE - OVERLAP)

    def _count_settled(self, trials: Sequence[Begun]) -> int:
        while self._is_whole(trials, self._settled) and not self._going_on(trials, self._settled):
            self._settled += 1
        return self._settled

    def _is_whole(self, trials: Sequence[Begun], wave: int) -> bool:
        """Return whether all trials of a wave have begun."""
        first = WAVE * wave
        return first < len(trials) and len(trials) >= min(first + WAVE, self._budget)

    def _going_on(self, trials: Sequence[Begun], wave: int) -> list[int]:
        goals = enumerate(self._goals(trials, wave), WAVE * wave)
        return [number for number, goal in goals if not trials[number].is_lost and trials[number].epoch < goal]

    def _goals(self, trials: Sequence[Begun], wave: int) -> list[int]:
        """Return the epoch to which each trial of a wave may be trained."""
        of_wave = trials[WAVE * wave : WAVE * (wave + 1)]
        goals = [self._stages[0]] * len(of_wave)
        if not self._is_whole(trials, wave):
            return goals
        racing = list(range(len(of_wave)))
        for rung, later in pairwise(self._stages):
            arrived = [place for place in racing if of_wave[place].epoch >= rung]
            if any(not of_wave[place].is_lost for place in racing if place not in arrived):
                break
            arrived.sort(key=lambda place: -_best(of_wave[place], rung))  # of equals, the one drawn first goes on
            racing = arrived[: math.ceil(len(racing) / self._reduction)]
            for place in racing:
                goals[place] = later
        return goals


def _best(trial: Begun, rung: int) -> float:
    return max(score for epoch, score in trial.scores.items() if epoch <= rung)
