"""A recipe file that tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support import plain_recipe


@pytest.fixture
def recipe(cells: Path, tmp_path: Path) -> Path:
    """Return the file of a tiny recipe on the cells."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain_recipe(cells, tmp_path / "runs")))
    return file
