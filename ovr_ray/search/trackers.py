"""Trackers: services that also get every trial's config and epochs.

MLflow and Weights & Biases are built in, by Ray's own callbacks; their own environment variables say where they are. An
installed package adds a tracker by an entry point of the group ``ovr_ray.trackers`` that names a :class:`Tracker`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import LoggerCallback
from rich.console import Console

from ovr_ray import ray_quirks
from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import BUILT_IN_TRACKERS, Recipe, plugins
from ovr_ray.runs import RunFolder
from ovr_ray.search.messages import epoch_of

UPLOAD_WITHIN: Final = 300
"""Seconds that the end of a search waits for uploads to Weights & Biases."""

MLFLOW_TRIES: Final = "3"
"""How often MLflow asks its server; its default of 7 would delay the search for minutes when the server is gone."""

RESTORED: Final = ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "WANDB_MODE")
"""Environment variables that are restored when a search has ended."""


@dataclass(frozen=True)
class Ready:
    """A tracker that can be used.

    Attributes
    ----------
    logger : LoggerCallback
        Ray's logger, set up.
    failures : tuple of exception types
        What its calls may raise when its server, or its process, is gone.
    """

    logger: LoggerCallback
    failures: tuple[type[Exception], ...]


class Tracker(Protocol):
    """A function that sets up a service for one search."""

    def __call__(self, recipe: Recipe, run: RunFolder, console: Console) -> Ready:
        """Set up the service; raise :class:`BadInput` if it cannot be reached, or has no place to write to."""
        ...


def refuse_lacking_packages(trackers: Collection[str]) -> None:
    """Raise :class:`BadInput` if the package of a built-in tracker is not installed."""
    if lacking := [name for name in trackers if name in BUILT_IN_TRACKERS and not find_spec(name)]:
        raise BadInput(Fault("search.trackers", f"needs {', '.join(lacking)}", "pip install 'ovr-ray[trackers]'"))


@contextmanager
def tracking(recipe: Recipe, run: RunFolder, console: Console) -> Iterator[list[tune.Callback]]:
    """Yield callbacks for the Tuner, which can be used within this block.

    Raises
    ------
    BadInput
        If a tracker cannot be reached, or has no place to write to.
    """
    with ray_quirks.restored(RESTORED):
        yield [Tracking(name, _tracker(name)(recipe, run, console), console) for name in recipe.search.trackers]


def _tracker(name: str) -> Tracker:
    built_in: dict[str, Tracker] = {"mlflow": _mlflow, "wandb": _wandb}
    return built_in.get(name) or plugins.load(plugins.TRACKERS, name)


class Tracking(tune.Callback):
    """Passes the epochs on to one of Ray's loggers; if that fails, the search continues without it.

    Parameters
    ----------
    name : str
    ready : Ready
    console : Console
    """

    def __init__(self, name: str, ready: Ready, console: Console) -> None:
        self._name, self._logger, self._failures, self._console = name, ready.logger, ready.failures, console
        self._open: set[TuneTrial] = set()
        self._lost = False

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._open.add(trial)
        self._try(self._logger.log_trial_start, trial)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if epoch := epoch_of(result):
            self._try(self._logger.log_trial_result, iteration, trial, ray_quirks.numbers_of(result, epoch))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._end(trial, failed=True)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        for trial in list(self._open):  # Tune does not report trials that Ctrl-C stops
            self._end(trial, failed=True)
        self._try(self._logger.on_experiment_end, trials)

    def _end(self, trial: TuneTrial, failed: bool) -> None:
        if trial in self._open:  # a trial whose worker never came up was not started
            self._open.remove(trial)
            self._try(self._logger.log_trial_end, trial, failed)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._lost:
            return
        try:
            call(*arguments)
        except self._failures as error:
            self._lost = True
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            self._console.print(
                f"{self._name} gets no more epochs: {why}", style="yellow", markup=False, highlight=False
            )

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks; nothing of this one is needed


def _mlflow(recipe: Recipe, run: RunFolder, console: Console) -> Ready:
    from mlflow.exceptions import MlflowException
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    for chatty in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MLFLOW_TRIES)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        folder = _local(run, "MLflow", "set MLFLOW_TRACKING_URI to a server's address")
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        console.print(f"MLflow: {uri} (MLFLOW_TRACKING_URI names another place)", markup=False, highlight=False)
    logger = MLflowLoggerCallback(uri, experiment_name=recipe.name, tags=_marks(run))
    try:
        logger.setup()
    except MlflowException as error:
        remedy = "an address such as http://host:5000 or sqlite:////folder/mlflow.db"
        raise BadInput(Fault("MLFLOW_TRACKING_URI", str(error).splitlines()[0], remedy)) from None
    return Ready(logger, (MlflowException,))


def _wandb(recipe: Recipe, run: RunFolder, console: Console) -> Ready:
    import wandb
    from ray.air.integrations.wandb import WandbLoggerCallback

    settings = wandb.Settings(silent=True)
    try:
        settings.update_from_env_vars(dict(os.environ))  # the process that logs has another environment
    except ValueError as error:
        raise BadInput(Fault("WANDB_…", str(error), "set it right, or not at all")) from None
    is_local = isinstance(run.path, Path)
    if "WANDB_DIR" not in os.environ and is_local:
        settings.root_dir = str(run.path)
    wanted = settings.mode not in ("offline", "dryrun")
    if settings.mode != "disabled" and not (wanted and (settings.api_key or wandb.login(prompt=False, verify=False))):
        settings.mode = "offline"
        if "WANDB_DIR" not in os.environ:
            _local(run, "Weights & Biases", "log in (wandb login, or WANDB_API_KEY), or set WANDB_DIR")
        message = f"Weights & Biases: offline; wandb sync {settings.root_dir}/wandb/offline-run-* uploads"
        console.print(message, markup=False, highlight=False)
    os.environ["WANDB_MODE"] = settings.mode
    marks = _marks(run)
    logger = WandbLoggerCallback(
        project=recipe.name,
        group=marks["session"],
        notes=marks["run_folder"],
        upload_timeout=UPLOAD_WITHIN,
        settings=settings,
    )
    logger.setup()
    return Ready(logger, (KeyError, RayError))  # KeyError: Ray's logger forgot a trial whose process died


def _marks(run: RunFolder) -> dict[str, str]:
    """Return tags that distinguish a resumed trial from its earlier session; both have the trial's name."""
    return {"run_folder": str(run.path), "session": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}"}


def _local(run: RunFolder, tracker: str, remedy: str) -> Path:
    if not isinstance(run.path, Path):
        raise BadInput(Fault("search.trackers", f"{tracker} cannot write into {run.path}", remedy))
    return run.path
