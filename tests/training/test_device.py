from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import ovr_ray
from ovr_ray.training import choose_device, is_out_of_memory, set_up_process


def test_the_device_is_what_ray_assigned_and_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(gpus=0.5).type == "cuda"
    assert choose_device(gpus=0).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(gpus=1).type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(gpus=0).type == "mps"


@pytest.mark.parametrize(("cpus", "threads"), [(3.0, 3), (0.5, 1)])
def test_torch_uses_as_many_threads_as_cpus_are_assigned_and_at_least_one(cpus: float, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        set_up_process(cpus, gpus=0)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("gpus", "share"), [(0.25, 0.25), (1, 1.0), (2, 1.0)])
def test_a_process_takes_no_more_of_a_gpus_memory_than_its_share(
    gpus: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    set_up_process(cpus=torch.get_num_threads(), gpus=gpus)
    assert taken == [share]
    set_up_process(cpus=torch.get_num_threads(), gpus=0)
    assert taken == [share]


def test_a_lack_of_memory_is_distinguished_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    for message in (
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
    ):
        assert is_out_of_memory(RuntimeError(message))
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(other.value)


GIVEN_BACK = """
from pathlib import Path
import numpy as np
from ovr_ray.training import keep_pages

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_pages()
before = resident()
buffers = [np.ones(1 << 20, np.uint8) for _ in range(201)]
last = buffers.pop()  # what lies above the others keeps the heap from shrinking by itself
del buffers
kept = resident()
keep_pages()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_process_keeps_its_buffers_until_the_next_trial() -> None:
    """It is tried in a new process, because the setting cannot be undone."""
    printed = subprocess.run([sys.executable, "-c", GIVEN_BACK], check=True, capture_output=True, text=True).stdout
    kept, left = map(int, printed.split())
    assert kept > 200 << 20
    assert left < 20 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP there")
@pytest.mark.parametrize(
    ("variables", "count"),
    [({}, ovr_ray.SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_threads_of_torch_spin_as_long_as_we_say_unless_the_user_says_something(
    variables: dict[str, str], count: str
) -> None:
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", "import ovr_ray.training"]
    environment = others | variables | {"OMP_DISPLAY_ENV": "VERBOSE"}
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stderr
    assert f"GOMP_SPINCOUNT = '{count}'" in told


def test_a_worker_of_ray_loads_torch_only_with_this_package() -> None:
    code = "import sys, ray.data, ray.tune, ray._private.workers.default_worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
