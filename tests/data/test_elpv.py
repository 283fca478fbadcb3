from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from data import elpv


def test_elpv_labels_follow_from_probability_and_module_type(tmp_path: Path) -> None:
    source = tmp_path / "package"
    (source / "images").mkdir(parents=True)
    rows = ["cell0001.png  1.0  mono", "cell0002.png  0.3333  poly", "cell0003.png  0.6667  poly"]
    (source / "labels.csv").write_text("".join(f"images/{row}\n" for row in rows))
    for row in rows:
        Image.new("L", (8, 8)).save(source / "images" / row.split()[0])
    table = elpv.prepare(source, tmp_path / "out")
    assert table.defective.tolist() == [1, 0, 1]
    assert table.monocrystalline.tolist() == [1, 0, 0]
    assert (tmp_path / "out/data.csv").read_text().splitlines()[0] == "filename;defective;monocrystalline"
    assert (tmp_path / "out/images/cell0003.png").exists()


def test_the_real_package_has_2624_images(tmp_path: Path) -> None:
    spec = find_spec("elpv_dataset")
    assert spec
    assert spec.origin
    table = elpv.prepare(Path(spec.origin).parent / "data", tmp_path)
    assert len(table) == 2624
    assert table.defective.sum() == 821
    assert table.monocrystalline.sum() == 1074
