from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data import synthetic


def test_synthetic_labels_have_their_rates_and_images_follow_from_the_seed(tmp_path: Path) -> None:
    table = synthetic.generate(tmp_path / "a", count=100, size=24)
    synthetic.generate(tmp_path / "b", count=100, size=24)
    other = synthetic.generate(tmp_path / "c", count=100, size=24, seed=1)
    assert (table.crack.sum(), table.inactive.sum()) == (22, 6)
    assert not table.equals(other)
    for name in table.filename[:5]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / table.filename[0]) as image:
        assert (image.size, image.mode) == ((24, 24), "L")


def test_areas_add_eighteen_labels_to_the_same_images(tmp_path: Path) -> None:
    table = synthetic.generate(tmp_path / "a", count=100, size=24, areas=True)
    plain = synthetic.generate(tmp_path / "b", count=100, size=24)
    assert table[list(plain)].equals(plain)
    assert len(table.columns) == 1 + 20
    assert [table["dark-0"].sum(), table["uneven-8"].sum()] == [40, 5]
    corner = [np.asarray(Image.open(tmp_path / "a" / name))[:8, :8].mean() for name in table.filename]
    assert np.mean(np.array(corner)[table["dark-0"] == 1]) < np.mean(corner) - 10


def test_synthetic_defects_are_dark() -> None:
    def darkness(**defects: bool) -> float:
        cells = [synthetic.draw(64, rng=np.random.default_rng(i), **defects) for i in range(20)]
        return float(np.mean([(np.asarray(cell) < 70).mean() for cell in cells]))

    sound = darkness(crack=False, inactive=False)
    assert darkness(crack=True, inactive=False) > sound + 0.003
    assert darkness(crack=False, inactive=True) > sound + 0.03
