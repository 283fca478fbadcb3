"""A cluster, used from a laptop: `ray up`, jobs, the loss of a worker during a search, `ray down`."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pandas as pd
import pytest

from data.elpv import prepare
from ovr_ray.runs import RunFolder, Status
from tests.cluster.cluster import Cluster
from tests.support import PATIENCE

TASKS = {"defective", "monocrystalline"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def quickstart(cluster: Cluster) -> list[str]:
    """The arguments of the quickstart's job: shared folders, fewer images and epochs, more trials, two per GPU."""
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    prepare(Path(spec.origin).parent / "data", cluster.shared / "elpv")
    sets = {
        "data.labels": cluster.shared / "elpv" / "data.csv",
        "data.images": cluster.shared / "elpv",
        "storage": cluster.shared / "runs",
        "data.limit": 240,
        "search.max_epochs": 3,
        "tasks.defective.trials": 18,
        "tasks.monocrystalline.trials": 18,
        "resources": "{cpu: 0.5, gpu: 0.5}",
    }
    return ["jobs/recipes/quickstart.yaml", *(f"--set={key}={value}" for key, value in sets.items())]


def test_without_the_token_nobody_can_submit_a_job(cluster: Cluster) -> None:
    without = cluster.submit("python", "-c", "1", RAY_AUTH_MODE="disabled")
    assert without.returncode != 0
    assert "401" in without.stdout or "Unauthorized" in without.stdout, without.stdout
    wrong = cluster.submit("python", "-c", "1", RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode != 0
    assert "403" in wrong.stdout or "Forbidden" in wrong.stdout, wrong.stdout


def test_storage_that_a_worker_does_not_see_is_refused_with_the_workers_name(
    cluster: Cluster, quickstart: list[str]
) -> None:
    refused = cluster.submit("python", "jobs/tune.py", *quickstart, "--set=storage=/tmp/on-this-host-alone")
    assert refused.returncode != 0
    assert "storage: nodes w1 (10.77.0.11), w2 (10.77.0.12) do not see" in refused.stdout, refused.stdout
    assert "Traceback" not in refused.stdout


def test_a_search_uses_every_worker_and_survives_the_loss_of_one(cluster: Cluster, quickstart: list[str]) -> None:
    running = cluster.start_job("python", "jobs/tune.py", *quickstart)
    cluster.log("ray job submit of the quickstart")

    def wait_for_epochs(hosts: set[str], tasks: set[str], what: str, since: float = 0) -> None:
        def happened() -> bool:
            assert running.poll() is None, running.communicate()[0]
            seen = epochs_of(cluster, since)
            return hosts <= set(seen.host) and all(tasks <= set(seen.task[seen.host == host]) for host in hosts)

        cluster.wait_for(happened, what)

    wait_for_epochs({"w1", "w2"}, set(), "both workers train")
    cluster.hosts.crash("w1")
    crashed = time.time()
    cluster.log("every process of w1 has been killed")
    wait_for_epochs({"w2"}, TASKS, "w2 has trained both tasks", crashed)
    cluster.hosts.boot("w1")
    booted = time.time()
    cluster.log("w1 is switched on again")
    # perhaps one task alone: its next trial starts where its last one ended
    wait_for_epochs({"w1"}, set(), "w1 is back and trains", booted)
    log = running.communicate(timeout=2 * PATIENCE)[0]  # the rest of a search on three hosts that share two cores
    assert running.returncode == 0, log
    cluster.log("the search has ended")
    run = RunFolder.open(cluster.shared / "runs" / "quickstart")
    trials = run.trials()
    assert [trial.record.task for trial in trials] == ["defective"] * 18 + ["monocrystalline"] * 18
    assert {trial.record.status for trial in trials} <= {Status.FINISHED, Status.STOPPED}
    for trial in trials:
        epochs = trial.folder.epochs().epoch.tolist()
        assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.long
def test_combine_and_evaluate_run_as_jobs(cluster: Cluster) -> None:
    run = RunFolder.open(cluster.shared / "runs" / "quickstart")
    for job in ("combine", "evaluate"):
        done = cluster.submit("python", f"jobs/{job}.py", str(run.path))
        assert done.returncode == 0, done.stdout
        cluster.log(f"{job} has ended")
    assert set(json.loads((run.path / "metrics.json").read_text())["tasks"]) == TASKS


def epochs_of(cluster: Cluster, since: float) -> pd.DataFrame:
    """Return task and host of the epochs that Tune has recorded since then."""
    files = (cluster.shared / "runs" / "quickstart" / "trials").glob("*/result.json")
    results = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]
    seen = [(r["config"]["task"], r["hostname"]) for r in results if r["timestamp"] > since]
    return pd.DataFrame(seen, columns=["task", "host"])
