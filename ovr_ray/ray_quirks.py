"""Everything that depends on Ray's internals or on the wording of its messages, for the Ray that constraints.txt pins.

The tests are in ``tests/test_ray_quirks.py`` and, for loopback, in ``tests/test_cluster.py``. Run them first after an
upgrade of Ray.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import ray
from ray._private import ray_constants

NODE_LOST: Final = "its node has died"
"""Ray's words about an actor whose machine is gone."""

SLOW_START: Final = "timed out during startup"
"""Ray's words when its processes did not come up within its fixed 30 seconds."""

TEMPORARY: Final = ("RAY_TMPDIR", "TMPDIR")
"""Variables that say where Ray makes its temporary folder; the first that is set counts."""

SOCKET: Final = "/ray/session_2026-01-01_00-00-00_000000_{process}/sockets/plasma_store"
"""Path of a socket below the folder that such a variable names."""

LONGEST_SOCKET: Final = 107
"""Bytes that Linux allows for the path of a socket."""

LOW_MEMORY: Final = "running low on memory"
"""Ray's words when it kills workers to free memory. Tune does not expect this end of a trial, and gives up."""

LONGEST_REASON: Final = 500
"""Characters of an error that are kept; the whole trace is in the trial's ``error.txt``."""

CHATTY: Final = (
    "ray._private.authentication",  # says that a local cluster asks for a token, which it finds by itself
    "ray.data",  # bad images are reported by us; a failed task raises
    "ray.tune",  # failed trials are reported by us; their traces are in trials/*/error.txt
)
"""Loggers whose warnings would hide the messages of this package."""

CHATTY_CLIENT: Final = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that report every upload and connection of the job client."""

ON_START: Final = {
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a table of its own, whatever the verbosity
}
"""Variables that Ray reads when it is imported or started."""

DURING_SEARCH: Final = {
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # otherwise both Tune and the ledger restart a preempted trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that ended early has no score to report
}
"""Variables that Tune reads during a search."""


@contextmanager
def restored(names: Iterable[str]) -> Iterator[None]:
    """Restore these environment variables at the end of this block."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def environment(variables: Mapping[str, str], keep_users: bool = False) -> Iterator[None]:
    """Set environment variables within this block, and restore them at its end.

    With ``keep_users``, a variable that is set already keeps its value.
    """
    with restored(variables):
        os.environ.update({k: v for k, v in variables.items() if not (keep_users and k in os.environ)})
        yield


def pending_trials(count: int) -> dict[str, str]:
    """Return the variable that lets this many trials wait for resources at once.

    With a custom searcher only one trial waits otherwise, and an autoscaler adds nodes one by one.
    """
    return {"TUNE_MAX_PENDING_TRIALS_PG": str(count)}


def quiet(loggers: tuple[str, ...], level: int) -> None:
    """Raise the level of these loggers."""
    for name in loggers:
        logging.getLogger(name).setLevel(level)


def in_job() -> bool:
    """Return whether this process was started by ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def too_long_for_sockets(folder: str) -> int:
    """Return by how many bytes a temporary folder's path is too long for the sockets that Ray makes; 0: it fits."""
    socket = folder + SOCKET.format(process=os.getpid())
    return max(0, len(os.fsencode(socket)) - LONGEST_SOCKET)


@contextmanager
def loopback_only() -> Iterator[None]:
    """Have a Ray that is started within this block bind its ports to loopback.

    Ray binds its ports to all interfaces unless it thinks that it runs on Windows or macOS, where this avoids the
    firewall's questions. ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`` has the same effect, but only before Ray is imported.
    """
    with _replaced(ray_constants, ENABLE_RAY_CLUSTER=False):
        yield


def last_failure(error_file: str | None) -> str:
    """Return the last trace in a trial's ``error.txt``, where Tune appends one per failure; "" if there is none."""
    traces = Path(error_file).read_text() if error_file and Path(error_file).exists() else ""
    return traces.rpartition("Failure # ")[2].strip()


def is_node_loss(failure: str) -> bool:
    """Return whether a trial failed because its machine is gone."""
    return NODE_LOST in failure


def reason_of(failure: str) -> str:
    """Return the exception of a trace, without the trace."""
    if is_node_loss(failure):
        return NODE_LOST
    lines = failure.splitlines()
    named = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(\([\w.]+\))?: ", line)]
    return "\n".join(lines[named[-1] if named else -1 :])[:LONGEST_REASON].strip() or "its worker died"


def trace_file(trial: Any, folder: Path) -> Path:
    """Return where Tune writes the trace of a trial; a trial that is tried again gets a folder of its own."""
    return folder.with_name(trial.relative_logdir) / "error.txt"


def forget_history(trial: Any) -> None:
    """Drop an ended trial's metrics, of which Tune keeps three copies until the search ends."""
    kept = trial.run_metadata
    kept.metric_analysis, kept.metric_n_steps = {}, {}


@contextmanager
def lean_tune() -> Iterator[None]:
    """Keep Tune from doing, within this block, what only costs time here.

    It would read all results of all trials into memory when a search ends; import MLflow and W&B, if they are there,
    to count their callbacks; and set variables for the trials, for which Ray starts new processes, although processes
    wait. Credentials are set nevertheless.
    """
    from ray.air._internal import usage
    from ray.tune import ExperimentAnalysis
    from ray.tune.execution import class_cache

    credentials = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    with (
        _replaced(ExperimentAnalysis, _fetch_trial_dataframes=lambda self: {}),
        _replaced(usage, tag_callbacks=lambda callbacks: False),
        _replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=credentials),
    ):
        yield


@contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Replace attributes of a module or class within this block."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def stand_in(trial_id: str) -> Any:
    """Return what Tune's ASHA needs of a trial: it looks at nothing but the identifier."""
    return SimpleNamespace(trial_id=trial_id)


def with_step(metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return metrics for ``tune.report`` whose step in TensorBoard is ``step``.

    Tune's own count starts again whenever a trial is resumed.
    """
    from ray.tune.result import TIMESTEPS_TOTAL

    return {**metrics, TIMESTEPS_TOTAL: step}


def numbers_of(result: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the numbers that a trial reported, without what Tune added, and with the step that its loggers use."""
    from ray.tune.result import AUTO_RESULT_KEYS, TRAINING_ITERATION

    numbers = {
        name: value
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in AUTO_RESULT_KEYS
    }
    return numbers | {TRAINING_ITERATION: step}


def assigned() -> tuple[float, float]:
    """Return the CPUs and GPUs that Ray assigned to this task or actor."""
    resources = ray.get_runtime_context().get_assigned_resources()
    return resources.get("CPU", 1), resources.get("GPU", 0)
