"""Images that look like solar cells, with cracks and inactive regions at chosen rates, for tests and large data sets.

python data/synthetic.py OUTPUT [--count 2000] [--size 300] [--crack 0.22] [--inactive 0.06] [--seed 0] [--areas]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

RATES = {"crack": 0.22, "inactive": 0.06}
AREAS = 3
"""Number of areas along each side of an image; each area can have labels."""


def draw(size: int, crack: bool, inactive: bool, rng: np.random.Generator) -> Image.Image:
    """Draw a cell: a bright square with busbars, grain and vignette; cracks are dark lines, inactive areas are dark."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    cell = rng.uniform(140, 190) - 35 * (x**2 + y**2) + rng.normal(0, 6, (size, size))
    for bar in np.linspace(0, size, 5)[1:-1].astype(int):
        cell[:, bar : bar + max(1, size // 75)] *= 0.6
    image = Image.fromarray(cell.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    if inactive:
        corner, width = rng.uniform(0.05, 0.6, 2) * size, rng.uniform(0.2, 0.35, 2) * size
        pen.rectangle([*corner, *(corner + width)], fill=int(rng.integers(15, 45)))
    if crack:
        point, heading = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0, 2 * np.pi)
        for _ in range(rng.integers(6, 12)):
            heading += rng.normal(0, 0.5)
            step = point + size * rng.uniform(0.05, 0.1) * np.array([np.cos(heading), np.sin(heading)])
            pen.line([*point, *step], fill=int(rng.integers(20, 60)), width=max(1, size // 75))
            point = step
    return image.filter(ImageFilter.GaussianBlur(size / 400))


def area_labels(images: Iterable[Image.Image]) -> pd.DataFrame:
    """Return eighteen correlated labels: whether each of 3 x 3 areas of an image is dark, and whether it is uneven.

    The share of images with a label, the darkest or the most uneven ones, falls from 40 % to 5 % over the labels.
    """
    seen = []
    for image in images:
        pixels = np.asarray(image, float)
        rows = np.array_split(pixels / pixels.mean(), AREAS)
        areas = [area for row in rows for area in np.array_split(row, AREAS, axis=1)]
        seen.append([*(-area.mean() for area in areas), *(area.std() for area in areas)])
    names = [f"{what}-{area}" for what in ("dark", "uneven") for area in range(AREAS**2)]
    ranks = pd.DataFrame(seen, columns=names).rank(ascending=False, method="first")
    return (ranks <= len(seen) * np.geomspace(0.4, 0.05, len(names))).astype(int)


def generate(
    output: Path,
    count: int = 2000,
    size: int = 300,
    rates: Mapping[str, float] = RATES,
    seed: int = 0,
    areas: bool = False,
) -> pd.DataFrame:
    """Write ``images/*.png`` and ``data.csv`` (``filename;crack;inactive``), and return the table.

    Each label has exactly ``round(rate * count)`` positives, independent of the other label. The same seed draws the
    same images. With ``areas`` there are twenty labels: these two, and those of :func:`area_labels`.
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"filename": [f"images/cell{i:0{len(str(count))}}.png" for i in range(count)]})
    for label in RATES:
        table[label] = rng.permutation(np.arange(count) < round(rates[label] * count)).astype(int)
    (output / "images").mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(table.itertuples()):
        image = draw(size, bool(row.crack), bool(row.inactive), np.random.default_rng([seed, i]))
        image.save(output / str(row.filename), compress_level=1)
    if areas:
        table = table.join(area_labels(Image.open(output / name) for name in table.filename))
    table.to_csv(output / "data.csv", sep=";", index=False)
    return table


def main() -> int:
    """Run the command line, and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, default=300, help="pixels a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", action="store_true", help="add eighteen labels of areas of the image")
    for label, rate in RATES.items():
        parser.add_argument(f"--{label}", type=float, default=rate, help=f"share of images with it, default {rate}")
    given = parser.parse_args()
    rates = {label: getattr(given, label) for label in RATES}
    table = generate(given.output, given.count, given.size, rates, given.seed, given.areas)
    counts = ", ".join(f"{table[label].sum()} {label}" for label in table.columns[1:])
    print(f"{given.output / 'data.csv'}: {len(table)} images, {counts}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
