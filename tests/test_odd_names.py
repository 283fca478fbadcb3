"""A run whose tasks and files have names that something inside could take for its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from data.synthetic import generate
from tests.support import plain_recipe, run_cli

TASKS = {"chunk": "crack", "裂纹.v2": "inactive"}
FILES = [
    "~",
    "~root.png",
    "a::b.png",
    "s3::x.png",
    "memory:x.png",
    "a b#?%20{x}.png",
    "📷.png",
    "größe\u0308.png",
    "-x.png",
]


@pytest.mark.slow
def test_a_run_ends_with_a_model_that_predicts_every_file(tmp_path: Path, ray_session: None) -> None:
    folder = tmp_path / "cells 📷"
    table = generate(folder, count=60, size=40, rates={"crack": 0.4, "inactive": 0.4})
    for row, name in enumerate(FILES):
        (folder / str(table.filename[row])).rename(folder / name)
        table.loc[row, "filename"] = name
    table.to_csv(folder / "data.csv", sep=";", index=False)
    recipe = plain_recipe(folder, tmp_path, search={"max_epochs": 1, "grace_epochs": 1})
    config = recipe["tasks"]["crack"] | {"trials": 1}
    recipe["tasks"] = {name: config | {"column": column} for name, column in TASKS.items()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    ran = run_cli("run", tmp_path / "recipe.yaml")
    assert ran.exit_code == 0, ran.stderr
    run = tmp_path / "tiny"
    combined = run_cli("combine", run, "--top-k", 2, "--format", "onnx", "--pick", "裂纹.v2=裂纹.v2-0000")
    assert combined.exit_code == 0, combined.stderr
    for images, expected in ((folder / "data.csv", list(table.filename)), (folder, FILES[1:])):
        predicted = run_cli("predict", run, images, "--output", tmp_path / "answers.csv")
        assert predicted.exit_code == 0, predicted.stderr
        assert "joint.onnx answers, by ONNX Runtime" in predicted.stderr
        answers = pd.read_csv(tmp_path / "answers.csv", sep=";", keep_default_na=False)
        assert (answers.error == "").all()
        assert {Path(name).name for name in expected} <= {Path(name).name for name in answers.filename}
        assert {f"{task}_probability" for task in TASKS} <= set(answers)
    assert "裂纹.v2" in (run / "report.html").read_text(encoding="utf-8")
