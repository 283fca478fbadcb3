"""One-vs-rest image classification on Ray: a search per label, all at once, and one TorchScript model at the end.

>>> import ovr_ray
>>> run = ovr_ray.tune("recipe.yaml")
>>> model = ovr_ray.combine(run)
>>> ovr_ray.evaluate(model)["average_f1"]

Each function does what the command of the same name does:

- :func:`init`, :func:`check`, :func:`preview` and :func:`prepare` come before a search,
- :func:`tune` searches, and :func:`status` shows how far it is,
- :func:`refit` trains the winners again as folds,
- :func:`combine` writes the joint model, :func:`evaluate` scores it,
- :func:`predict` and :func:`predict_parts` use it,
- :func:`report` writes a page about a run,
- :func:`run` does tune, combine, evaluate and report; :func:`submit` does them on a cluster.

These functions, the recipe, the files of a run folder and the joint model are stable. Everything else in this package
may change with any version.
"""

import os
from typing import TYPE_CHECKING, Any

from ovr_ray._version import __version__

SPIN_COUNT = "1000"
"""How long OpenMP's threads spin before they sleep; much longer by default. docs/performance.md says what it costs."""

if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded, which no import of this package has done yet
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

if TYPE_CHECKING:
    from ovr_ray.commands.verbs import (
        check,
        combine,
        evaluate,
        init,
        predict,
        predict_parts,
        prepare,
        preview,
        refit,
        report,
        run,
        status,
        submit,
        tune,
    )

__all__ = [
    "__version__",
    "check",
    "combine",
    "evaluate",
    "init",
    "predict",
    "predict_parts",
    "prepare",
    "preview",
    "refit",
    "report",
    "run",
    "status",
    "submit",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used, because torch and Ray take seconds."""
    if name in __all__:
        from ovr_ray.commands import verbs

        return getattr(verbs, name)
    raise AttributeError(f"module 'ovr_ray' has no attribute {name!r}")
