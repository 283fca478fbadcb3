"""Everything on S3: labels, images, decoded images and run folder, through a server that speaks its protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from upath import UPath

from tests.support import SIZE, plain_recipe, run_cli_anew


@pytest.fixture
def recipe(bucket: str, cells: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a recipe whose labels, as Parquet, images and storage are in a bucket."""
    for file in (file for file in cells.rglob("*") if file.is_file()):
        (UPath(bucket) / "cells" / file.relative_to(cells).as_posix()).write_bytes(file.read_bytes())
    pd.read_csv(cells / "data.csv", sep=";").to_parquet(tmp_path / "data.parquet")
    (UPath(bucket) / "cells/data.parquet").write_bytes((tmp_path / "data.parquet").read_bytes())
    recipe = plain_recipe(cells, tmp_path, search={"max_epochs": 2})
    recipe["data"] |= {"labels": f"{bucket}/cells/data.parquet", "images": f"{bucket}/cells"}
    return recipe | {"storage": f"{bucket}/runs"}


@pytest.mark.slow
@pytest.mark.long
def test_images_in_a_bucket_are_decoded_once_and_a_changed_one_again(
    recipe: dict[str, Any], bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "80 images in 1 shards" in printed("prepare", tmp_path / "recipe.yaml")
    (first,) = (UPath(bucket) / f"runs/_images/gray-{SIZE}").iterdir()
    changed = UPath(bucket) / "cells/images/cell05.png"
    changed.write_bytes((UPath(bucket) / "cells/images/cell06.png").read_bytes())
    printed("prepare", tmp_path / "recipe.yaml")
    there = {file.name for file in UPath(f"{bucket}/runs/_images/gray-{SIZE}/", skip_instance_cache=True).iterdir()}
    assert len(there) == 2
    assert first.name in there


@pytest.mark.slow
def test_a_run_from_labels_to_predictions(recipe: dict[str, Any], bucket: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = f"{bucket}/runs/tiny"
    assert "average" in printed("run", tmp_path / "recipe.yaml")
    assert f"Complete; ovr-ray combine {run}" in printed("status", run)
    printed("predict", run, f"{bucket}/cells/images", "--output", tmp_path / "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 81


def printed(*arguments: object) -> str:
    """Return what the command line prints in a new process, whose Ray starts with the bucket's environment."""
    done = run_cli_anew(*arguments)
    assert done.exit_code == 0, done.stdout + done.stderr
    return done.stdout
