"""Every trial also in MLflow or Weights & Biases, by Ray's own callbacks; where they lie, their own variables say."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import LoggerCallback
from ray.tune.result import AUTO_RESULT_KEYS, TRAINING_ITERATION
from rich.console import Console

from ovr_ray.errors import BadInput, Fault
from ovr_ray.recipe import Recipe, Tracker
from ovr_ray.run_folder import RunFolder

UPLOAD_WITHIN = 300
"""Seconds that the end of a search waits for what Weights & Biases has still to send."""

MLFLOW_TRIES = "3"
"""MLflow's default of 7 would hold up the whole search for minutes when its server is gone."""

LEFT = ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "WANDB_MODE")
"""Variables that are as before when a search has ended."""


def refuse_lacking_packages(trackers: Collection[Tracker]) -> None:
    """Raise :class:`BadInput` if a tracker's package is not there."""
    if lacking := [name for name in trackers if not find_spec(name)]:
        raise BadInput(Fault("search.trackers", f"needs {', '.join(lacking)}", "pip install 'ovr-ray[trackers]'"))


@contextmanager
def tracking(recipe: Recipe, run: RunFolder, console: Console) -> Iterator[list[tune.Callback]]:
    """Callbacks for the Tuner, ready to be used within this block.

    Raises
    ------
    BadInput
        If a tracker cannot be reached, or has no place to write to.
    """
    before = {name: os.environ.get(name) for name in LEFT}
    ready = {"mlflow": _mlflow, "wandb": _wandb}
    try:
        yield [Tracking(name, *ready[name](recipe, run, console), console) for name in recipe.search.trackers]
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Tracking(tune.Callback):
    """Tells one of Ray's loggers of the epochs, and of nothing else; if it fails, the search goes on without it.

    Parameters
    ----------
    name : str
    logger : LoggerCallback
        Set up.
    failures : tuple of exception types
        What it may raise when its server, or its process, is gone.
    console : Console
    """

    def __init__(
        self, name: str, logger: LoggerCallback, failures: tuple[type[Exception], ...], console: Console
    ) -> None:
        self._name, self._logger, self._failures, self._console = name, logger, failures, console
        self._open: set[TuneTrial] = set()
        self._lost = False

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._open.add(trial)
        self._try(self._logger.log_trial_start, trial)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if epoch := result.get("epoch"):
            given = {k: v for k, v in result.items() if isinstance(v, int | float) and k not in AUTO_RESULT_KEYS}
            numbers = {name: value for name, value in given.items() if not isinstance(value, bool)}
            # the step: Tune's own count begins anew in every session
            self._try(self._logger.log_trial_result, iteration, trial, numbers | {TRAINING_ITERATION: epoch})

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._end(trial, failed=True)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        for trial in list(self._open):  # Tune tells nothing of trials that Ctrl-C stops
            self._end(trial, failed=True)
        self._try(self._logger.on_experiment_end, trials)

    def _end(self, trial: TuneTrial, failed: bool) -> None:
        if trial in self._open:  # one whose worker never came up was not begun
            self._open.remove(trial)
            self._try(self._logger.log_trial_end, trial, failed)

    def _try(self, tell: Callable[..., None], *told: Any) -> None:
        if self._lost:
            return
        try:
            tell(*told)
        except self._failures as error:
            self._lost = True
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            self._console.print(f"{self._name} is told no more: {why}", style="yellow", markup=False, highlight=False)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks; nothing of this one is worth keeping


Ready = tuple[LoggerCallback, tuple[type[Exception], ...]]
"""A logger that is set up, and what it may raise."""


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
    return logger, (MlflowException,)


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
        told = f"Weights & Biases: offline; wandb sync {settings.root_dir}/wandb/offline-run-* uploads"
        console.print(told, markup=False, highlight=False)
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
    return logger, (KeyError, RayError)  # KeyError: Ray's logger forgot a trial whose process died


def _marks(run: RunFolder) -> dict[str, str]:
    """What tells a trial that goes on from its first part: both have the trial's name."""
    return {"run_folder": str(run.path), "session": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}"}


def _local(run: RunFolder, tracker: str, remedy: str) -> Path:
    if not isinstance(run.path, Path):
        raise BadInput(Fault("search.trackers", f"{tracker} cannot write into {run.path}", remedy))
    return run.path
