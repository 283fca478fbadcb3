"""A folder of unusual and bad image files: each file either works or is named in one error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ovr_ray.errors import BadInput
from ovr_ray.images import load, read_labels
from ovr_ray.recipe import Recipe

pytestmark = pytest.mark.usefixtures("ray_session")
GOOD, BAD = 54, 6
REASONS = {
    "truncated.png": "damaged",
    "zero bytes.png": "the file is empty",
    "text.png": "not an image",
    "bomb.png": "pixels",
    "float.tif": "floating-point",
    "überhaupt kein Bild.jpg": "not an image",
}


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Recipe:
    """A recipe for a folder of 60 image files, a tenth of them bad."""
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [*(name for number in range(GOOD // 9) for name in _good(folder, number)), *_bad(folder)]
    values = np.arange(len(names))
    table = pd.DataFrame({"filename": names, "crack": values % 2, "inactive": values // 2 % 2})
    table.to_csv(folder / "data.csv", sep=";", index=False)
    return make_recipe(data={"labels": str(folder / "data.csv"), "images": str(folder), "on_bad_image": "skip"})


def _good(folder: Path, number: int) -> list[str]:
    """Write one gradient, 100 at its middle, in nine formats; return the file names."""
    ramp = np.linspace(50, 150, 40 + number, dtype=np.uint8)[None].repeat(50 - number, 0)
    gray, sixteen = Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    names = [f"{number} {kind}" for kind in ("g.png", "16.png", "rgb.png", "rgba.png", "palette.png", "größe №.bmp")]
    for name, image in zip(names, [gray, sixteen, *map(gray.convert, ("RGB", "RGBA", "P")), gray], strict=True):
        image.save(folder / name)
    gray.save(folder / f"{number}.tiff")
    gray.save(folder / f"{number}.webp", lossless=True)
    gray.rotate(180).save(folder / f"{number} turned.jpeg", exif=exif, quality=95)
    return [*names, f"{number}.tiff", f"{number}.webp", f"{number} turned.jpeg"]


def _bad(folder: Path) -> list[str]:
    """Write the bad files that ``REASONS`` lists; return their names."""
    noise = Image.effect_noise((200, 200), 50)
    noise.save(folder / "truncated.png")
    (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:-900])
    (folder / "zero bytes.png").touch()
    (folder / "text.png").write_text("not an image")
    Image.new("1", (14_000, 14_000)).save(folder / "bomb.png")
    noise.convert("F").save(folder / "float.tif")
    (folder / "überhaupt kein Bild.jpg").write_bytes(b"\xff\xd8\xff but no more")
    return list(REASONS)


def test_every_file_works_or_is_named(recipe: Recipe) -> None:
    images, table = load(read_labels(recipe.data, recipe.tasks), recipe.data, recipe.storage, memory=1e9)
    assert len(table.files) == GOOD + BAD
    named = {table.files[row]: reason for row, reason in images.bad.items()}
    assert named.keys() == REASONS.keys()
    assert all(REASONS[name] in reason for name, reason in named.items())
    for window in images.windows(~table.labels.isna().all(axis=1).to_numpy(), None):
        for row, image in window.items():  # the gradient, in whatever format it was stored
            assert image[0].mean() == pytest.approx(100, abs=2), table.files[row]
            assert image[0, :, 0].mean() < 60 < 140 < image[0, :, -1].mean(), table.files[row]


def test_all_bad_files_are_named_in_one_error(recipe: Recipe) -> None:
    data = recipe.data.model_copy(update={"on_bad_image": "error"})
    with pytest.raises(BadInput) as caught:
        load(read_labels(data, recipe.tasks), data, recipe.storage, memory=1e9)
    assert f"{BAD} of {GOOD + BAD} images cannot be decoded" in str(caught.value)
    assert all(name in str(caught.value) for name in REASONS)
