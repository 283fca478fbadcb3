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
from tests.support import BACKBONE, joint_metadata, random_images, random_sub_model

SOURCE = Path(__file__).with_name("predict.cpp")


def build(program: Path) -> None:
    """Build with g++ alone: cmake's find_package(Torch) would look for the CUDA that torch was built with."""
    folder = Path(torch.__file__).parent
    headers = [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{folder / 'lib'}", f"-Wl,-rpath,{folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", abi, *headers, str(SOURCE), "-o", str(program), *libraries]
    subprocess.run(command, check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_cpp_program_gives_the_answers_that_python_gives(tmp_path: Path) -> None:
    sub_models = [random_sub_model(BACKBONE, 64), random_sub_model("resnet18", 48)]
    model = JointModel(["a", "b"], sub_models, [0.3, 0.5]).eval()
    batch = random_images(size=(50, 70), count=3)
    write_torchscript(model, UPath(tmp_path / "joint.pt"), joint_metadata("ab"), list(batch))
    (tmp_path / "images.bin").write_bytes(batch.numpy().tobytes())
    build(tmp_path / "predict")
    files = [str(tmp_path / name) for name in ("predict", "joint.pt", "images.bin")]
    command = [*files, *map(str, batch.shape)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with torch.inference_mode():
        expected = model(batch).numpy()
    assert expected.std() > 0.1
    assert np.allclose(np.array([line.split() for line in answer.splitlines()], float), expected, atol=1e-4)
