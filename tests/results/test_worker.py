from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ovr_ray
from ovr_ray.images import read_image
from ovr_ray.joint import load_torchscript
from ovr_ray.results.worker import BATCH
from ovr_ray.runs import RunFolder


def test_images_of_many_sizes_and_bad_ones_keep_their_places(finished: RunFolder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert 2 * BATCH < 75
    for number in range(75):
        size = (30, 40) if number % 3 else (50, 50 + number)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "40.png").write_text("not an image")
    table = ovr_ray.predict(finished, [str(tmp_path)])
    assert table.index[table.error != ""].tolist() == [40]
    joint, _ = load_torchscript(finished.joint_model.read_bytes())
    for number in (0, 33, 39, 41, 74):
        alone = joint(torch.from_numpy(read_image(table.filename[number], "gray"))[None])
        assert table.crack_probability[number] == pytest.approx(alone[0, 0].item(), abs=1e-5)
