from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ovr_ray.recipe import Config, Task
from ovr_ray.search.space import TaskSpace


def space(default: dict[str, Any] | None = None, **fields: Any) -> TaskSpace:
    return TaskSpace(Task.model_validate({"default": default or {}, "space": fields}), image_size=64)


def test_every_domain_becomes_a_distribution_of_optuna() -> None:
    given = space(
        lr={"loguniform": [1e-5, 1e-3]},
        weight_decay={"uniform": [0, 0.1]},
        unfreeze_epoch={"randint": [0, 5]},
        backbone={"choice": ["resnet18", "resnet34"]},
        batch_size=8,
    )
    assert given.distributions == {
        "lr": FloatDistribution(1e-5, 1e-3, log=True),
        "weight_decay": FloatDistribution(0, 0.1),
        "unfreeze_epoch": IntDistribution(0, 5),
        "backbone": CategoricalDistribution([0, 1]),
    }


def test_the_first_config_is_the_default_if_it_lies_in_the_space() -> None:
    first = space(
        {"lr": 5e-4}, lr={"loguniform": [1e-5, 1e-3]}, batch_size={"choice": [16, 32]}, optimizer="sgd"
    ).first()
    assert (first.lr, first.batch_size, first.optimizer, first.image_size) == (5e-4, 32, "sgd", 64)


def test_a_built_in_default_outside_of_the_space_is_replaced_by_the_middle() -> None:
    first = space(
        lr={"loguniform": [1e-6, 1e-4]}, batch_size={"choice": [2, 4]}, unfreeze_epoch={"randint": [2, 6]}
    ).first()
    assert (first.lr, first.batch_size, first.unfreeze_epoch) == (pytest.approx(1e-5), 2, 4)


def test_a_config_becomes_optunas_parameters_and_back() -> None:
    schedule = {1: 1e-3, 6: 1e-4}
    given = space(lr={"uniform": [0.1, 0.2]}, schedule={"choice": ["cosine", schedule]}, weights=None)
    config = given.config({"lr": 0.15, "schedule": 1})
    assert (config.schedule, config.weights) == (schedule, None)
    assert given.parameters(Config.model_validate_json(config.model_dump_json())) == {"lr": 0.15, "schedule": 1}


def test_a_task_may_choose_among_image_sizes() -> None:
    assert space(image_size={"choice": [32, 64]}).config({"image_size": 0}).image_size == 32
