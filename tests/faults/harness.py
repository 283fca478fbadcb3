"""Searches whose processes are killed at random moments, and the comparison with an undisturbed search.

The job is the unmodified ``jobs/tune.py``, in a process and on a Ray of its own, on real images. If a safeguard is
named, the job runs a copy of the code in which it is missing, to prove that the comparison can fail.
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

from ovr_ray.joint import choose
from ovr_ray.model import read_card
from ovr_ray.runs import RunFolder, Status, TrialRecord
from tests.support import BACKBONE, ancestors, end

PROJECT = Path(__file__).parents[2]

Killed = Literal["worker", "driver", "node"]
"""The kinds of processes that are killed."""

Safeguard = Literal["rungs", "optimizer"]
"""The safeguards that can be removed."""

SAFEGUARDS: dict[Safeguard, tuple[str, str]] = {
    "rungs": ("search/multiplex.py", "        self._replay()\n"),
    "optimizer": ("training/trainer.py", '        self.optimizer.load_state_dict(state["optimizer"])\n'),
}
"""File of the package, and the line in it that is removed."""

ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
"""Variables for a cluster on this machine: otherwise Ray would replace 127.0.0.1 by the machine's outer address."""

NODE = {"object_store_memory": 150_000_000, "node_ip_address": "127.0.0.1"}
"""Options of each node of such a cluster."""

COUNTS = [f"{split}_{count}" for split in ("train", "val") for count in ("tn", "fp", "fn", "tp")]
TOLERANCE = 1e-6
"""Largest accepted difference of a loss, on the CPU with one thread."""


@dataclass(frozen=True)
class Kind:
    """A kind of search.

    Attributes
    ----------
    searcher, scheduler : str
    slots : int
        Trials that run at once. With more than one, TPE and ASHA see epochs in an order that is chance; halving does
        not depend on it.
    """

    searcher: str
    scheduler: str
    slots: int = 1

    def __str__(self) -> str:
        return f"{self.searcher}, {self.scheduler}, {self.slots} at once"


def recipe(data: Path, storage: Path, name: str, kind: Kind, trials: int = 4) -> dict[str, Any]:
    """Return a recipe with two labels of real images, so small that a search takes a minute."""
    space = {"lr": {"loguniform": [1e-4, 1e-2]}, "unfreeze_epoch": {"choice": [0, 2]}}
    task = {"trials": trials, "default": {"backbone": BACKBONE, "weights": None}, "space": space}
    return {
        "name": name,
        "data": {"labels": str(data / "data.csv"), "images": str(data), "image_size": 48, "limit": 240},
        "tasks": {"defective": task, "monocrystalline": task},
        "search": {
            "searcher": kind.searcher,
            "scheduler": kind.scheduler,
            "max_epochs": 4,
            "grace_epochs": 1,
            "reduction": 2,
            "max_failures": 1000,
            "max_concurrent": kind.slots,
        },
        "resources": {"cpu": 0.5},
        "storage": str(storage),
    }


@dataclass
class Kill:
    """The state of a search when a process of it was killed."""

    epochs: dict[str, pd.DataFrame]
    """Trial -> its epochs up to its latest complete checkpoint, which must not be trained again."""


@dataclass
class DisturbedSearch:
    """A search in sessions of its own, whose processes can be killed."""

    folder: Path
    recipe: dict[str, Any]
    rng: random.Random
    without: Safeguard | None = None
    """The safeguard that is missing; None: the code is as it is."""
    address: str | None = None
    """Address of the cluster to use; None: the search starts its own Ray."""
    sessions: int = 0
    kills: list[Kill] = field(default_factory=list)
    workers_killed: int = 0
    """Number of killed workers; only these are crashes of a trial's own."""

    @property
    def run(self) -> RunFolder:
        """The run folder of the search."""
        return RunFolder(UPath(self.recipe["storage"]) / self.recipe["name"])

    def start(self) -> subprocess.Popen[str]:
        """Start a session, and return its process."""
        file = self.folder / f"{self.recipe['name']}.yaml"
        file.write_text(yaml.safe_dump(self.recipe))
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(code_without(self.without, self.folder))}
        if self.address:
            environment |= {"RAY_ADDRESS": self.address, **ON_LOOPBACK}
        self.sessions += 1
        log = self._log.open("w")
        command = [sys.executable, str(PROJECT / "jobs/tune.py"), str(file)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, cwd=self.folder)

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.recipe['name']}-{self.sessions}.log"

    def log(self) -> str:
        """Return the output of the last session."""
        return self._log.read_text()

    def note(self) -> None:
        """Note the state of the search after a kill."""
        kept = {}
        for trial in self.run.trials():
            cards = [read_card(path, files) for path, files in trial.checkpoints.items()]
            latest = max((card.epoch for card in cards if card), default=0)
            epochs = trial.folder.epochs()
            kept[trial.folder.name] = epochs[epochs.epoch <= latest] if len(epochs) else epochs
        self.kills.append(Kill(kept))

    def _has_checkpoint_to_resume_from(self) -> bool:
        return any(trial.checkpoints for trial in self.run.trials() if trial.record.status == Status.UNFINISHED)

    def finish(self) -> None:
        """Run one session to its end, without a kill."""
        assert self.start().wait(600) == 0, self.log()

    def kill_driver(self, times: int, within: float) -> None:
        """Kill the job this many times, each time at most ``within`` seconds after its start."""
        for _ in range(times):
            process = self.start()
            try:
                assert process.wait(self.rng.uniform(0, within)) == 0, self.log()
                return  # it was faster
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                self.note()

    def kill_workers(self, times: int, within: float, after_a_checkpoint: bool = False) -> None:
        """Run one session to its end, and kill the process of a trial this many times.

        Parameters
        ----------
        times : int
        within : float
            Longest pause before a kill, in seconds.
        after_a_checkpoint : bool
            Kill only while an unfinished trial has a checkpoint to resume from.
        """
        most, process = len(self.kills) + times, self.start()
        try:
            while process.poll() is None:
                time.sleep(self.rng.uniform(0, within))
                if after_a_checkpoint and not self._has_checkpoint_to_resume_from():
                    continue
                if len(self.kills) < most and (worker := _worker_of(process.pid)):
                    with suppress(ProcessLookupError):  # it has just ended
                        os.kill(worker, signal.SIGKILL)
                        self.workers_killed += 1
                        self.note()
            assert process.returncode == 0, self.log()
        finally:
            end(process)


def code_without(safeguard: Safeguard | None, folder: Path) -> Path:
    """Return the folder in which the job finds ovr_ray: this project, or a copy that lacks a safeguard."""
    if safeguard is None:
        return PROJECT
    copy = folder / f"without-{safeguard}"
    if not copy.exists():
        shutil.copytree(PROJECT / "ovr_ray", copy / "ovr_ray", ignore=shutil.ignore_patterns("__pycache__"))
        name, line = SAFEGUARDS[safeguard]
        text = (copy / "ovr_ray" / name).read_text()
        assert text.count(line) == 1, f"{line!r} is {text.count(line)} times in {name}, not once"
        (copy / "ovr_ray" / name).write_text(text.replace(line, ""))
    return copy


def _worker_of(driver: int) -> int | None:
    """Return the process below a driver that trains a trial."""
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
    """Start a head that trains nothing, and nodes that do, as processes of this machine."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    ray_constants.ENABLE_RAY_CLUSTER = False  # as ON_LOOPBACK, if Ray is imported already
    os.environ |= ON_LOOPBACK
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": str(folder), **NODE})
    try:
        for _ in range(count):
            nodes.add_node(num_cpus=cpus, **NODE)
        yield nodes
    finally:
        nodes.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = True
        for name in ON_LOOPBACK:
            del os.environ[name]


def kill_nodes(search: DisturbedSearch, nodes: Any, times: int, within: float) -> None:
    """Run one session to its end; remove a node with its trials and images this many times, and add a new one."""
    process = search.start()
    try:
        while process.poll() is None:
            time.sleep(search.rng.uniform(2, within))
            busy = any(len(trial.folder.epochs()) for trial in search.run.trials())
            if len(search.kills) < times and busy and process.poll() is None:
                nodes.remove_node(search.rng.choice(sorted(nodes.worker_nodes, key=str)), allow_graceful=False)
                search.note()
                nodes.add_node(num_cpus=1, **NODE)
        assert process.returncode == 0, search.log()
    finally:
        end(process)


def compare(undisturbed: RunFolder, search: DisturbedSearch, tolerance: float = TOLERANCE) -> dict[str, int]:
    """Count the differences by kind; all are 0 if the kills changed nothing."""
    expected, found = (_trials(run) for run in (undisturbed, search.run))
    counts = dict.fromkeys(("lost trials", "surplus trials", "other configs", "other epochs", "repeated epochs"), 0)
    ended = {name for name, (record, _) in found.items() if record.status.is_scored}
    counts["lost trials"] = len(expected.keys() - ended)
    counts["surplus trials"] = len(found.keys() - expected.keys())
    for name in expected.keys() & found.keys():
        (record, epochs), (other, others) = expected[name], found[name]
        counts["other configs"] += record.config != other.config
        counts["other epochs"] += _differing(epochs, others, tolerance)
    for kill in search.kills:
        for name, epochs in kill.epochs.items():
            now = found[name][1]
            if len(epochs):
                kept = now.set_index("epoch").time.reindex(epochs.epoch)
                counts["repeated epochs"] += int((kept.to_numpy() != epochs.time.to_numpy()).sum())
    chosen, best = (choose(run, run.recipe()) for run in (undisturbed, search.run))
    crashes = sum(record.failures for record, _ in found.values())
    counts["unjust failures"] = max(0, crashes - search.workers_killed)
    counts["wrong winners"] = sum(winner.name != best[task].name for task, winner in chosen.items())
    return counts


def _trials(run: RunFolder) -> dict[str, tuple[TrialRecord, pd.DataFrame]]:
    return {trial.folder.name: (trial.record, trial.folder.epochs()) for trial in run.trials()}


def _differing(epochs: pd.DataFrame, others: pd.DataFrame, tolerance: float) -> int:
    """Return the number of epochs that only one trial has, or that differ in a loss or a count."""
    both = epochs.set_index("epoch").join(others.set_index("epoch").add_suffix("_other"), how="outer")
    losses = [f"{split}_loss" for split in ("train", "val")]
    apart = [(both[name] - both[f"{name}_other"]).abs() for name in [*losses, *COUNTS]]
    return int((~(pd.concat(apart, axis=1).max(axis=1, skipna=False) <= tolerance)).sum())
