"""The joint model in C++: predict.cpp is built against the torch that is installed here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from upath import UPath

from ovr_ray.joint import JointModel, write_torchscript
from tests.support import BACKBONE
from tests.joint.test_joint import images, sub_model

SOURCE = Path(__file__).with_name("predict.cpp")


def build(program: Path) -> None:
    """With plain g++: cmake's find_package(Torch) would look for the CUDA that torch was built with."""
    folder = Path(torch.__file__).parent
    headers = [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{folder / 'lib'}", f"-Wl,-rpath,{folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", abi, *headers, str(SOURCE), "-o", str(program), *libraries]
    subprocess.run(command, check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_cpp_program_answers_as_python_does(tmp_path: Path) -> None:
    model = JointModel(["a", "b"], [sub_model(BACKBONE, 64), sub_model("resnet18", 48)], [0.3, 0.5]).eval()
    batch = images(size=(50, 70), count=3)
    write_torchscript(model, UPath(tmp_path / "joint.pt"), {}, list(batch))
    (tmp_path / "images.bin").write_bytes(batch.numpy().tobytes())
    build(tmp_path / "predict")
    command = [tmp_path / "predict", tmp_path / "joint.pt", tmp_path / "images.bin", *map(str, batch.shape)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with torch.inference_mode():
        expected = model(batch).numpy()
    assert expected.std() > 0.1
    assert np.allclose(np.array([line.split() for line in answer.splitlines()], float), expected, atol=1e-4)
