"""Run benchmarks against their baselines: `python -m tests.benchmarks [NAME…] [--gpu] [--json FILE]`.

Without a name, all but the long ones are run. `--gpu` without a name runs only those that need a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import gpu
from tests.benchmarks.measure import Row, machine

BENCHMARKS = (
    "busy",
    "checkpoints",
    "feed",
    "growth",
    "joint",
    "predict",
    "quality",
    "search",
    "startup",
    "stream",
    "trial",
)
"""Modules of this package with ``rows() -> list[Row]`` and ``LONG``; the others have commands of their own."""


def main() -> None:
    """Run the benchmarks, print the table, and write the JSON."""
    modules = {name: importlib.import_module(f"tests.benchmarks.{name}") for name in BENCHMARKS}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(modules)}")
    parser.add_argument("--gpu", action="store_true", help="also those that need a GPU; without a name, only those")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(modules)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(modules)}")
    if given.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch sees no CUDA GPU on this machine (python -c 'import torch; torch.zeros(1).cuda()')")
    names = given.names or [name for name, module in modules.items() if not module.LONG and not given.gpu]
    where = machine()
    rows = [row for name in names for row in modules[name].rows()]
    if given.gpu:
        rows += gpu.rows()
    Console().print(
        _table(rows), f"{where['processor']}, {where['cores']} cores, load {where['load']:.1f} at the start"
    )
    if given.json:
        given.json.write_text(json.dumps({"machine": where, "rows": rows}, indent=1))


def _table(rows: list[Row]) -> Table:
    table = Table(caption="ratio: above 1 ours is better; medians of runs that alternate with the baseline's")
    for column in ("name", "baseline", "ours", "theirs", "ratio", "goal", "runs"):
        table.add_column(column, justify="left" if column in ("name", "baseline") else "right")
    for row in rows:
        taken = [f"{1000 * row[key]:.1f} ms" for key in ("ours_s", "baseline_s")]
        figures = [f"{row['ratio']:.2f}", f"{row['goal']:.2f}", str(row["runs"])]
        style = "" if row["ratio"] >= row["goal"] else "yellow"
        table.add_row(row["name"], row["baseline"], *taken, *figures, style=style)
    return table


if __name__ == "__main__":
    main()
