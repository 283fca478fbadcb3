"""Everything on S3: labels, images and run folder, through a server of the test's that speaks its protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from botocore.exceptions import EndpointConnectionError
from upath import UPath

from tests.conftest import free_port, plain_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on a server on loopback, which every process that is started now finds."""
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(60):
            try:
                boto3.client("s3").create_bucket(Bucket="bucket")
                break
            except EndpointConnectionError:
                time.sleep(0.5)
        yield "s3://bucket"
    finally:
        server.terminate()
        server.wait(30)


def test_a_run_from_labels_to_predictions(bucket: str, cells: Path, tmp_path: Path) -> None:
    for file in (file for file in cells.rglob("*") if file.is_file()):
        (UPath(bucket) / "cells" / file.relative_to(cells).as_posix()).write_bytes(file.read_bytes())
    recipe = plain_recipe(cells, tmp_path, search={"max_epochs": 2})
    recipe["data"] |= {"labels": f"{bucket}/cells/data.csv", "images": f"{bucket}/cells"}
    recipe["storage"] = f"{bucket}/runs"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = f"{bucket}/runs/tiny"
    assert "average" in call("run", tmp_path / "recipe.yaml")
    assert f"Complete; ovr-ray combine {run}" in call("status", run)
    call("predict", run, f"{bucket}/cells/images", "--output", tmp_path / "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 81


def call(*arguments: object) -> str:
    command = [sys.executable, "-m", "ovr_ray.cli", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
