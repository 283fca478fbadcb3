"""A search that has ended, as a ledger, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ovr_ray.recipe import Recipe
from ovr_ray.runs import RunFolder, Status, TrialRecord
from ovr_ray.search import Ledger


def searched(
    recipe: Recipe,
    scores: Sequence[Mapping[int, float]],
    statuses: Sequence[Status] = (),
    configs: Sequence[Mapping[str, Any]] = (),
) -> Ledger:
    """Return the ledger of a run folder with a trial of crack for each of these scores (epoch -> average precision)."""
    run = RunFolder.of(recipe)
    run.begin(recipe, "fingerprint", pd.DataFrame({"filename": [], "part": []}))
    for number, own in enumerate(scores):
        folder, status = run.trial("crack", number), statuses[number] if statuses else Status.FINISHED
        config = recipe.tasks["crack"].default.model_copy(update=configs[number] if configs else {})
        folder.write_record(TrialRecord(task="crack", number=number, status=status, config=config))
        if own:
            folder.write_epochs([{"epoch": epoch, "val_average_precision": value} for epoch, value in own.items()])
    return Ledger(run, recipe, recipe.tasks)
