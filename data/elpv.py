"""Real electroluminescence images of solar cells, from the PyPI package ``elpv-dataset``, as a labelled data set.

Writes ``images/*.png`` (2,624 images, 300 x 300, 8-bit gray) and ``data.csv`` (``filename;defective;monocrystalline``):
two labels of very different difficulty. *defective* is a defect probability of at least 0.5, *monocrystalline* the
type of module. The images are CC BY-NC-SA 4.0: Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective
Solar Cells in Electroluminescence Imagery", EU PVSEC 2018.

    python data/elpv.py [--output data/elpv]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd


def prepare(source: Path, output: Path) -> pd.DataFrame:
    """Copy the images that do not exist yet, write the labels, and return their table.

    Parameters
    ----------
    source : Path
        The package's ``data`` folder: ``labels.csv`` and ``images/``.
    output : Path
        Folder in which ``data.csv`` and ``images/`` are written.
    """
    raw = pd.read_csv(source / "labels.csv", sep=r"\s+", header=None, names=["filename", "probability", "module"])
    table = pd.DataFrame(
        {
            "filename": raw.filename,
            "defective": (raw.probability >= 0.5).astype(int),
            "monocrystalline": (raw.module == "mono").astype(int),
        }
    )
    (output / "images").mkdir(parents=True, exist_ok=True)
    for name in table.filename:
        if not (output / name).exists():
            shutil.copyfile(source / name, output / name)
    table.to_csv(output / "data.csv", sep=";", index=False)  # last: if it exists, everything does
    return table


def main() -> int:
    """Run the command line, and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "elpv", help="default: data/elpv")
    output = parser.parse_args().output
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        print("The images are not installed: pip install 'ovr-ray[demo]'", file=sys.stderr)
        return 2
    table = prepare(Path(spec.origin).parent / "data", output)
    shares = ", ".join(f"{share:.1%} {label}" for label, share in table.drop(columns="filename").mean().items())
    print(f"{output / 'data.csv'}: {len(table)} images, {shares}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
