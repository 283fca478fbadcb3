"""Write the pages of the Python API, from its docstrings: ``python docs/api.py [FOLDER]`` (default: build/api)."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import ovr_ray

INTERFACES = (
    "ovr_ray",
    "ovr_ray.errors",
    "ovr_ray.recipe",
    "ovr_ray.results",
    "ovr_ray.joint",
    "ovr_ray.runs",
    "ovr_ray.search",
    "ovr_ray.model",
    "ovr_ray.model.backbones",
)
"""The public API, and the rooms whose types it takes and returns."""


def main() -> None:
    """Write the pages."""
    for name in ovr_ray.__all__:  # pdoc does not ask the module's __getattr__
        vars(ovr_ray)[name] = getattr(ovr_ray, name)
    pdoc.render.configure(docformat="numpy", show_source=False)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")
    pdoc.pdoc(*INTERFACES, output_directory=folder)
    print(folder / "index.html")


if __name__ == "__main__":
    main()
