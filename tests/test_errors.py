from __future__ import annotations

import pickle

from ovr_ray.errors import BadInput, Fault


def test_bad_input_tells_the_same_in_another_process() -> None:
    error = BadInput([Fault("recipe.yaml: name", "is missing", "write one"), Fault("a.csv", "is empty")])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error) == "recipe.yaml: name: is missing\n    -> write one\na.csv: is empty"
