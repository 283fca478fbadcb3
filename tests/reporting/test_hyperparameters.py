from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ovr_ray.recipe import Recipe
from ovr_ray.reporting.hyperparameters import SHADES, HyperparameterFigures, hyperparameters
from tests.reporting.support import searched

CONFIGS: list[dict[str, Any]] = [
    {"lr": 1e-4, "unfreeze_epoch": 0},
    {"lr": 1e-2, "unfreeze_epoch": 2},
    {"lr": 1e-3, "unfreeze_epoch": 0},
]
SCORES = [0.25, 0.75, 0.5]


@pytest.fixture
def figures(make_recipe: Callable[..., Recipe]) -> HyperparameterFigures:
    found = hyperparameters(searched(make_recipe(), [{1: score} for score in SCORES], configs=CONFIGS), "crack")
    assert found
    return found


def lines(figure: Any) -> dict[str, list[float]]:
    """Return the places of each trial on the axes, in the order in which the trials are drawn."""
    found: dict[str, list[float]] = {}
    for trace in figure.data[:-1]:  # the last one has the colour bar
        for y, name in zip(trace.y, trace.hovertext, strict=True):
            if y is not None:
                found.setdefault(name, []).append(y)
    return found


def test_each_trial_is_a_line_through_its_values_and_the_best_is_drawn_last(figures: HyperparameterFigures) -> None:
    found = lines(figures.parallel)
    assert list(found) == ["crack-0000", "crack-0002", "crack-0001"]
    assert found["crack-0000"] == pytest.approx([0, 0, 0])
    assert found["crack-0001"] == pytest.approx([1, 1, 1])
    assert found["crack-0002"] == pytest.approx([0.5, 0.5, 0])  # lr is drawn by its logarithm
    assert list(figures.parallel.layout.xaxis.ticktext) == ["validation AP", "lr", "unfreeze_epoch"]
    assert "lr: 0.001" in figures.parallel.data[1].text


def test_many_trials_are_few_traces(make_recipe: Callable[..., Recipe]) -> None:
    count = 3 * SHADES
    configs = [{"lr": 1e-3, "unfreeze_epoch": number % 2 * 2} for number in range(count)]
    ledger = searched(make_recipe(), [{1: number / count} for number in range(count)], configs=configs)
    figures = hyperparameters(ledger, "crack")
    assert figures
    assert len(figures.parallel.data) == SHADES + 1
    assert len(lines(figures.parallel)) == count


def test_each_field_has_a_plot_of_all_scores(figures: HyperparameterFigures) -> None:
    lr, unfreeze = figures.slices.data
    assert (list(lr.x), list(lr.y)) == ([1e-4, 1e-2, 1e-3], SCORES)
    assert list(unfreeze.x) == ["0", "2", "0"]
    assert figures.slices.layout.xaxis.type == "log"
    assert list(figures.slices.layout.xaxis2.categoryarray) == ["0", "2"]


def test_a_field_of_one_choice_and_equal_scores_have_axes(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(tasks={"crack": {"space": {"unfreeze_epoch": {"choice": [0]}}}})
    figures = hyperparameters(searched(recipe, [{1: 0.5}, {1: 0.5}]), "crack")
    assert figures
    assert set(map(tuple, lines(figures.parallel).values())) == {(0.0, 0.0)}


def test_nothing_is_drawn_before_two_trials_have_a_score(make_recipe: Callable[..., Recipe]) -> None:
    assert hyperparameters(searched(make_recipe(), [{1: 0.5}, {}]), "crack") is None
    assert hyperparameters(searched(make_recipe(name="nan"), [{1: 0.5}, {1: float("nan")}]), "crack") is None


def test_nothing_is_drawn_of_a_search_that_varies_no_field(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(tasks={"crack": {"trials": 2, "default": {"lr": 1e-3}}})
    assert hyperparameters(searched(recipe, [{1: 0.5}, {1: 0.6}]), "crack") is None
