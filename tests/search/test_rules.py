"""Successive halving as a rule: what it decides never depends on which trial ended first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from ovr_ray.recipe import Search
from ovr_ray.search.rules import OVERLAP, WAVE, Begun, ToTheEnd, Waves, rule_of, rungs

STAGES, REDUCTION = [1, 3, 9], 3


@dataclass
class Trained:
    """A trial that is trained by hand; its score at an epoch is drawn by its number, and some trials are lost."""

    number: int
    lost_after: int | None = None
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        return max(self.scores, default=0)

    @property
    def is_lost(self) -> bool:
        return self.lost_after is not None and self.epoch >= self.lost_after

    @property
    def is_ended(self) -> bool:
        return self.is_lost or self.epoch >= STAGES[-1]

    def train(self, goal: int) -> None:
        """Train to an epoch, or until it is lost."""
        draws = np.random.default_rng(self.number).random(STAGES[-1]).round(1)  # there are equals
        for epoch in range(self.epoch + 1, min(goal, self.lost_after or goal) + 1):
            self.scores[epoch] = float(draws[epoch - 1])


@dataclass
class History:
    """What happened in a simulated search."""

    trials: list[Trained]
    known: dict[int, list[dict[int, float]]]
    """Number -> the scores of all trials that its draw knew."""
    goals: dict[int, list[int]]
    """Number -> the goals that it was trained to, in order."""


def searched(budget: int, slots: int, seed: int = 0, lost: frozenset[int] = frozenset()) -> History:
    """Run a search whose trials take random times, with this many slots."""
    rng, rule = np.random.default_rng([seed, slots]), Waves(STAGES, REDUCTION, budget)
    trials: list[Trained] = []
    live: dict[int, tuple[float, int]] = {}
    history = History(trials, {}, {})
    now = 0.0
    while True:
        while len(live) < slots:
            waiting = [number for number in rule.unsettled(trials) if number not in live]
            if not waiting and len(trials) < budget and rule.may_begin(trials):
                number = len(trials)
                history.known[number] = [dict(trials[other].scores) for other in rule.known(trials)]
                trials.append(Trained(number, 2 if number in lost else None))
                waiting = [number]
            if not waiting:
                break
            goal = rule.goal(trials, waiting[0])
            history.goals.setdefault(waiting[0], []).append(goal)
            live[waiting[0]] = (now + float(rng.exponential()) * goal, goal)
        if not live:
            return history
        ended = min(live, key=lambda number: live[number])
        now, goal = live.pop(ended)
        trials[ended].train(goal)


@pytest.mark.parametrize("budget", [1, 4, WAVE, WAVE + 1, 5 * WAVE + 7])
def test_slots_and_durations_change_neither_the_trials_nor_what_a_draw_knows(budget: int) -> None:
    lost = frozenset({2, 3, WAVE})
    expected = searched(budget, 1, lost=lost)
    for slots in (2, 3, 8, 64):
        for seed in range(3):
            found = searched(budget, slots, seed, lost)
            assert [trial.scores for trial in found.trials] == [trial.scores for trial in expected.trials]
            assert (found.known, found.goals) == (expected.known, expected.goals)


def test_the_best_third_of_a_wave_goes_on_from_rung_to_rung() -> None:
    trials = searched(2 * WAVE, 4).trials
    for wave in (trials[:WAVE], trials[WAVE:]):
        racing = list(wave)
        for rung in STAGES[:-1]:
            count = math.ceil(len(racing) / REDUCTION)
            ranked = sorted(racing, key=lambda t: (-max(s for e, s in t.scores.items() if e <= rung), t.number))
            assert all(trial.epoch == rung for trial in ranked[count:])
            racing = ranked[:count]
        assert len(racing) == 2
        assert all(trial.epoch == STAGES[-1] for trial in racing)


def test_a_draw_knows_all_waves_but_the_last_ones_and_these_are_settled() -> None:
    history = searched(5 * WAVE, 7)
    final = [trial.scores for trial in history.trials]
    for number, known in history.known.items():
        assert known == final[: WAVE * max(0, number // WAVE - OVERLAP)]


def test_nobody_goes_on_before_the_whole_wave_is_at_the_rung() -> None:
    rule, trials = Waves(STAGES, REDUCTION, WAVE), [Trained(number) for number in range(WAVE)]
    for trial in trials[:-1]:
        trial.train(1)
    assert rule.unsettled(trials) == [WAVE - 1]
    assert [rule.goal(trials, number) for number in range(WAVE)] == [1] * WAVE
    assert rule.unsettled(trials[:-1]) == []  # the last one has not begun
    trials[-1].train(1)
    assert len(rule.unsettled(trials)) == WAVE // REDUCTION


def test_a_lost_trial_holds_nobody_back_and_gives_its_place_to_nobody_below() -> None:
    trials = [Trained(number, lost_after=2) for number in range(WAVE)]
    rule = Waves(STAGES, REDUCTION, WAVE)
    for trial in trials:
        trial.train(1)
    going_on = rule.unsettled(trials)
    assert len(going_on) == WAVE // REDUCTION
    for number in going_on:
        trials[number].train(3)
        assert trials[number].is_lost
    assert rule.unsettled(trials) == []
    assert {trial.epoch for number, trial in enumerate(trials) if number not in going_on} == {1}


@pytest.mark.parametrize("lost", [[], [0], list(range(WAVE))])
def test_a_larger_budget_and_a_later_last_epoch_let_stopped_trials_go_on(lost: list[int]) -> None:
    trials = searched(4, 2, lost=frozenset(lost)).trials
    assert Waves(STAGES, REDUCTION, 4).unsettled(trials) == []
    assert (Waves([1, 3, 9, 12], REDUCTION, 4).unsettled(trials) != []) is (len(lost) < WAVE)
    more: list[Begun] = [*trials, *(Trained(number) for number in range(4, WAVE))]
    rule = Waves(STAGES, REDUCTION, WAVE)
    assert rule.unsettled(more) == list(range(4, WAVE))


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_without_halving_every_trial_goes_to_the_end_and_draws_know_what_has_ended(scheduler: str) -> None:
    rule = rule_of(Search.model_validate({"scheduler": scheduler, "max_epochs": 9}), budget=3)
    assert isinstance(rule, ToTheEnd)
    trials = [Trained(0), Trained(1, lost_after=2), Trained(2)]
    for trial, goal in zip(trials, (9, 9, 3), strict=True):
        trial.train(goal)
    assert [rule.goal(trials, number) for number in range(3)] == [9, 9, 9]
    assert (rule.unsettled(trials), rule.known(trials), rule.may_begin(trials)) == ([2], [0, 1], True)


@pytest.mark.parametrize("scheduler", ["asha", "halving"])
def test_rungs_grow_by_the_reduction_and_end_before_the_last_epoch(scheduler: str) -> None:
    search = Search.model_validate({"scheduler": scheduler, "max_epochs": 18, "grace_epochs": 2, "reduction": 3})
    assert rungs(search) == [2, 6]
    assert rungs(search.model_copy(update={"max_epochs": 19})) == [2, 6, 18]


def test_an_unknown_scheduler_is_refused() -> None:
    search = Search.model_construct(scheduler="median")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="median"):
        rule_of(search, budget=1)
    with pytest.raises(AssertionError, match="median"):
        rungs(search)
