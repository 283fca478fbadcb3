from __future__ import annotations

import pickle

import pytest

from ovr_ray.errors import BadInput, Fault, Interrupted, OvrRayError, RunFailed


def test_bad_input_reads_the_same_in_another_process() -> None:
    error = BadInput([Fault("recipe.yaml: name", "is missing", "write one"), Fault("a.csv", "is empty")])
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "recipe.yaml: name: is missing\n    -> write one\na.csv: is empty"
    assert copy.faults == error.faults


def test_one_fault_is_enough() -> None:
    assert BadInput(Fault("a.csv", "is empty")).faults == [Fault("a.csv", "is empty")]


@pytest.mark.parametrize(("error", "code"), [(RunFailed("x"), 1), (BadInput([]), 2), (Interrupted("x"), 130)])
def test_an_error_knows_its_exit_code(error: OvrRayError, code: int) -> None:
    assert error.exit_code == code
