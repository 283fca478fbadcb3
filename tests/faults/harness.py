"""Searches that are shot at: a victim is killed at random moments, and the result compared with an undisturbed one's.

The job is the unmodified ``jobs/tune.py``, in a process and on a Ray of its own, on real images. ``sabotage`` runs it
from a copy of the code in which one safeguard is missing, to prove that the comparison can fail.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from upath import UPath

from ovr_ray.joint import winners
from ovr_ray.model import read_card
from ovr_ray.runs import RunFolder, TrialFolder
from tests.support import BACKBONE, ancestors, end

PROJECT = Path(__file__).parents[2]

Victim = Literal["worker", "driver", "node"]
Sabotage = Literal["rungs", "optimizer"]

SAFEGUARDS: dict[Sabotage, tuple[str, str, str]] = {
    "rungs": ("search/multiplex.py", "        self._replay()\n", ""),
    "optimizer": ("model/training.py", '        self.optimizer.load_state_dict(state["optimizer"])\n', ""),
}
"""File, safeguard, and what stands there instead."""

ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
"""For a cluster whose nodes are on this machine: Ray would write its outer address for 127.0.0.1."""

COUNTS = [f"{part}_{count}" for part in ("train", "val") for count in ("tn", "fp", "fn", "tp")]
TOLERANCE = 1e-6
"""Of losses, on the CPU with one thread."""


def recipe(data: Path, storage: Path, name: str, searcher: str, scheduler: str, trials: int = 4) -> dict[str, Any]:
    """Two labels of real images, so small that a search takes a minute."""
    space = {"lr": {"loguniform": [1e-4, 1e-2]}, "unfreeze_epoch": {"choice": [0, 2]}}
    task = {"trials": trials, "default": {"backbone": BACKBONE, "weights": None}, "space": space}
    return {
        "name": name,
        "data": {"labels": str(data / "data.csv"), "images": str(data), "image_size": 48, "limit": 240},
        "tasks": {"defective": task, "monocrystalline": task},
        "search": {
            "searcher": searcher,
            "scheduler": scheduler,
            "max_epochs": 4,
            "grace_epochs": 1,
            "reduction": 2,
            "max_failures": 1000,
            # one at a time: then early stopping and TPE, too, see the same epochs in the same order
            "max_concurrent": 1,
        },
        "storage": str(storage),
    }


@dataclass
class Shot:
    """What was recorded when a victim fell."""

    epochs: dict[str, pd.DataFrame]
    """Trial -> its epochs up to its latest whole checkpoint."""


@dataclass
class Hunt:
    """A search, and the one that shoots at it."""

    folder: Path
    recipe: dict[str, Any]
    rng: random.Random
    sabotage: Sabotage | None = None
    address: str | None = None
    """Of a cluster to use; None: the search starts its own Ray."""
    sessions: int = 0
    shots: list[Shot] = field(default_factory=list)
    workers_shot: int = 0
    """Only these are crashes of a trial's own."""

    @property
    def run(self) -> RunFolder:
        return RunFolder(UPath(self.recipe["storage"]) / self.recipe["name"])

    def start(self) -> subprocess.Popen[str]:
        file = self.folder / f"{self.recipe['name']}.yaml"
        file.write_text(yaml.safe_dump(self.recipe))
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_code(self.folder, self.sabotage))}
        if self.address:
            environment |= {"RAY_ADDRESS": self.address, **ON_LOOPBACK}
        self.sessions += 1
        log = (self.folder / f"{self.recipe['name']}-{self.sessions}.log").open("w")
        command = [sys.executable, str(PROJECT / "jobs/tune.py"), str(file)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, cwd=self.folder)

    def log(self) -> str:
        """What the last session said."""
        return (self.folder / f"{self.recipe['name']}-{self.sessions}.log").read_text()

    def note(self) -> None:
        """Remember what must never be trained again."""
        kept = {}
        for trial in self.run.trials():
            whole = [card.epoch for path in trial.checkpoints() if (card := read_card(path))]
            epochs = trial.epochs()
            kept[trial.name] = epochs[epochs.epoch <= max(whole, default=0)] if len(epochs) else epochs
        self.shots.append(Shot(kept))

    def _unfinished(self) -> Iterator[TrialFolder]:
        return (trial for trial in self.run.trials() if trial.record()["status"] == "unfinished")

    def undisturbed(self) -> None:
        """To the end, in one go."""
        assert self.start().wait(600) == 0, self.log()

    def shoot_driver(self, kills: int, within: float) -> None:
        """SIGKILL the job so many times, each so many seconds after its start at most."""
        for _ in range(kills):
            process = self.start()
            try:
                assert process.wait(self.rng.uniform(0, within)) == 0, self.log()
                return  # it was faster
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                self.note()

    def shoot_workers(self, kills: int, within: float, in_its_stride: bool = False) -> None:
        """SIGKILL the process of a trial until so many have fallen, while one search runs; to its end.

        ``in_its_stride``: only where a trial has a checkpoint to go on from.
        """
        kills, process = len(self.shots) + kills, self.start()
        try:
            while process.poll() is None:
                time.sleep(self.rng.uniform(0, within))
                if in_its_stride and not any(len(trial.checkpoints()) for trial in self._unfinished()):
                    continue
                if len(self.shots) < kills and (worker := _worker_of(process.pid)):
                    with suppress(ProcessLookupError):  # it has just ended
                        os.kill(worker, signal.SIGKILL)
                        self.workers_shot += 1
                        self.note()
            assert process.returncode == 0, self.log()
        finally:
            end(process)


def _code(folder: Path, sabotage: Sabotage | None) -> Path:
    """Where the job finds ovr_ray: here, or in a copy that lacks a safeguard."""
    if sabotage is None:
        return PROJECT
    copy = folder / f"without-{sabotage}"
    if not copy.exists():
        shutil.copytree(PROJECT / "ovr_ray", copy / "ovr_ray", ignore=shutil.ignore_patterns("__pycache__"))
        name, safeguard, instead = SAFEGUARDS[sabotage]
        text = (copy / "ovr_ray" / name).read_text()
        assert text.count(safeguard) == 1, f"{safeguard!r} is no longer in {name}"
        (copy / "ovr_ray" / name).write_text(text.replace(safeguard, instead))
    return copy


def _worker_of(driver: int) -> int | None:
    """The process that trains a trial, below a driver."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            if b"ray::ImplicitFunc" in title and driver in ancestors(int(process.name)):
                return int(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


@contextmanager
def cluster(folder: Path, count: int = 2, cpus: int = 1) -> Iterator[Any]:
    """A head that trains nothing and a few nodes that do, as processes of this machine."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    ray_constants.ENABLE_RAY_CLUSTER = False  # as ON_LOOPBACK, where Ray was imported before
    os.environ |= ON_LOOPBACK
    size = {"object_store_memory": 150_000_000, "node_ip_address": "127.0.0.1"}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": str(folder), **size})
    try:
        for _ in range(count):
            nodes.add_node(num_cpus=cpus, **size)
        yield nodes
    finally:
        nodes.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = True
        for name in ON_LOOPBACK:
            del os.environ[name]


def shoot_nodes(hunt: Hunt, nodes: Any, kills: int, within: float) -> None:
    """Take a node away, trials, decoded images and all, and bring a new one, while one search runs."""
    process = hunt.start()
    size = {"object_store_memory": 150_000_000, "node_ip_address": "127.0.0.1"}
    try:
        while process.poll() is None:
            time.sleep(hunt.rng.uniform(2, within))
            busy = any(len(trial.epochs()) for trial in hunt.run.trials())
            if len(hunt.shots) < kills and busy and process.poll() is None:
                nodes.remove_node(hunt.rng.choice(sorted(nodes.worker_nodes, key=str)), allow_graceful=False)
                hunt.note()
                nodes.add_node(num_cpus=1, **size)
        assert process.returncode == 0, hunt.log()
    finally:
        end(process)


def compare(undisturbed: RunFolder, hunt: Hunt) -> dict[str, int]:
    """What went wrong, counted; all 0 in a search that survives anything."""
    expected, found = (_trials(run) for run in (undisturbed, hunt.run))
    counts = dict.fromkeys(("lost trials", "surplus trials", "other configs", "other epochs", "repeated epochs"), 0)
    counts["lost trials"] = len(expected.keys() - {name for name, (record, _) in found.items() if _is_done(record)})
    counts["surplus trials"] = len(found.keys() - expected.keys())
    for name in expected.keys() & found.keys():
        (record, epochs), (other, others) = expected[name], found[name]
        counts["other configs"] += record["config"] != other["config"]
        counts["other epochs"] += _differing(epochs, others)
    for shot in hunt.shots:
        for name, epochs in shot.epochs.items():
            now = found[name][1]
            if len(epochs):
                kept = now.set_index("epoch").time.reindex(epochs.epoch)
                counts["repeated epochs"] += int((kept.to_numpy() != epochs.time.to_numpy()).sum())
    chosen, best = winners.choose(undisturbed), winners.choose(hunt.run)
    crashes = sum(record["failures"] for record, _ in found.values())
    counts["unjust failures"] = max(0, crashes - hunt.workers_shot)
    counts["wrong winners"] = sum(
        (winner.trial, winner.card.epoch) != (best[task].trial, best[task].card.epoch)
        for task, winner in chosen.items()
    )
    return counts


def _trials(run: RunFolder) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    return {trial.name: (trial.record(), trial.epochs()) for trial in run.trials()}


def _is_done(record: dict[str, Any]) -> bool:
    return record["status"] in ("finished", "stopped")


def _differing(epochs: pd.DataFrame, others: pd.DataFrame) -> int:
    """Epochs that one has and the other has not, or that differ in a loss or a count."""
    both = epochs.set_index("epoch").join(others.set_index("epoch").add_suffix("_other"), how="outer")
    losses = [f"{part}_loss" for part in ("train", "val")]
    apart = [(both[name] - both[f"{name}_other"]).abs() for name in [*losses, *COUNTS]]
    return int((~(pd.concat(apart, axis=1).max(axis=1, skipna=False) <= TOLERANCE)).sum())
