"""The checks of ``python -m tests.gpu``; each returns a verdict, what it saw, and figures."""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from upath import UPath

import ovr_ray
from data.synthetic import generate
from ovr_ray import cluster
from ovr_ray.errors import BadInput
from ovr_ray.images import Feed, ImageSet
from ovr_ray.joint import JointModel, load_torchscript, write_torchscript
from ovr_ray.model import SubModel, build, load_sub_model, read_card
from ovr_ray.recipe import Augment, Config, parse
from ovr_ray.runs import RunFolder, TrialFolder
from ovr_ray.search import tune
from ovr_ray.training import Cause, EarlyEnd, Session, Trainer, allow_tf32, is_out_of_memory, keep_pages
from ovr_ray.training.worker import in_micro_batches
from tests.benchmarks.gpu import Held, Load, sharing
from tests.support import assignment, joint_metadata, plain_recipe


@dataclass(frozen=True)
class Scale:
    """The device, and the sizes that are checked on it."""

    device: str
    backbone: str
    size: int
    batches: tuple[int, ...]
    steps: int
    calls: int
    mixed: tuple[str, ...]
    at_once: tuple[int, ...]

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"


ON_GPU: Final = Scale("cuda", "resnet50", 224, (32, 128, 256), 20, 25, ("resnet18", "efficientnet_b3", "vgg16"), (2, 4))
ON_CPU: Final = Scale("cpu", "shufflenet_v2_x0_5", 32, (8,), 4, 4, ("shufflenet_v2_x0_5",), (2,))


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes
    ----------
    is_good : bool or None
        None if there was nothing to judge: a figure alone, or a check that needs a GPU.
    told : str
    figures : dict
        For the JSON file.
    """

    is_good: bool | None
    told: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return {True: "good", False: "BAD", None: "figure"}[self.is_good]

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def run(name: str, scale: Scale, folder: Path) -> Verdict:
    """Run a check; one that raises is bad."""
    try:
        return CHECKS[name](scale, folder)
    except Exception as error:  # noqa: BLE001 - the checks behind it are still of use
        lines = traceback.format_exc().splitlines()
        return Verdict(
            False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", {"trace": lines}
        )


def machine(scale: Scale, folder: Path) -> Verdict:
    """Tell the GPU and whether this torch has kernels for it."""
    if not scale.is_gpu:
        return Verdict(None, "no GPU: everything below ran on the CPU")
    capability, known = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 1e9
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    told = f"{name}, {memory:.0f} GB, capability {capability}, {versions}"
    return Verdict(f"sm_{capability[0]}{capability[1]}" in known, told, {"architectures": known})


def search(scale: Scale, folder: Path) -> Verdict:
    """Search, combine and evaluate drawn images, with a GPU for each trial."""
    trained = _searched(scale, folder)
    epochs = pd.concat([trial.folder.epochs() for trial in trained.trials()])
    ovr_ray.combine(trained)
    scores = ovr_ray.evaluate(trained)
    devices = epochs.device.unique().tolist()
    told = (
        f"trained on {', '.join(devices)}, {', '.join(epochs.precision.unique())}; AP {scores['average_precision']:.3f}"
    )
    return Verdict(devices == [scale.device], told, {"images_per_s": epochs.images_per_s.tolist()})


def _searched(scale: Scale, folder: Path) -> RunFolder:
    """Return a finished search of two tasks; it is made once."""
    plain = plain_recipe(folder / "cells", folder / "runs", resources={"gpu": 1 if scale.is_gpu else 0})
    recipe = parse(plain)
    if not RunFolder.of(recipe).exists():
        generate(folder / "cells", count=80, size=64)
        tune(recipe, console=Console(quiet=True))
    return RunFolder.of(recipe)


def precision(scale: Scale, folder: Path) -> Verdict:
    """Compare the logits of one checkpoint in every precision with those of the CPU."""
    trial = _searched(scale, folder).trials()[0]
    (path, *_), images = trial.checkpoints, torch.randint(0, 256, (256, 1, 32, 32), dtype=torch.uint8)
    card = read_card(path, trial.checkpoints[path])
    assert card
    sub_model = load_sub_model(path, card).eval()
    allow_tf32("fp32")
    with torch.inference_mode():
        expected = sub_model(images)
        sub_model, images = sub_model.to(scale.device), images.to(scale.device)
        figures: dict[str, Any] = {}
        for name in ("fp32", "tf32", "bf16"):
            allow_tf32("tf32" if name == "tf32" else "fp32")
            with torch.autocast(scale.device, torch.bfloat16, enabled=name == "bf16"):
                logits = sub_model(images).float().cpu()
            changed = (logits.sigmoid() >= card.threshold) != (expected.sigmoid() >= card.threshold)
            figures[name] = {"apart": float((logits - expected).abs().max()), "decisions": int(changed.sum())}
    told = ", ".join(
        f"{name} {own['apart']:.1e} ({own['decisions']} of 256 decisions)" for name, own in figures.items()
    )
    return Verdict(figures["fp32"]["apart"] < 1e-3, f"logits apart from the CPU's: {told}", figures)


def waits(scale: Scale, folder: Path) -> Verdict:
    """Train while torch raises if anything waits for the GPU, from the third step on."""
    kinds = {"plain": {}, "moving average": {"ema_decay": 0.9}, "rotation": {"rotation": 10.0, "brightness": 0.1}}
    for settings in kinds.values():
        config = Config.model_validate({"backbone": scale.backbone, "weights": None, "batch_size": 8} | settings)
        trainer = _trainer(scale, config, channels=1)
        feed = _feed(scale, 8, 8, channels=1)

        def strict(
            epoch: int, feed: Feed = feed, config: Config = config
        ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            try:
                for number, batch in enumerate(feed.shuffled(epoch, 0, config.augment(Augment()))):
                    _sync_debug(scale, "error" if number >= 2 else "default")
                    yield batch
            finally:
                _sync_debug(scale, "default")

        next(trainer.epochs(strict, feed.ordered, len(feed)))
    return Verdict(True if scale.is_gpu else None, f"no step waits: {', '.join(kinds)}")


def _sync_debug(scale: Scale, mode: str) -> None:
    if scale.is_gpu:
        torch.cuda.set_sync_debug_mode(mode)


def _trainer(scale: Scale, config: Config, channels: int) -> Trainer:
    torch.manual_seed(0)
    mean, std = [0.5] * channels, [0.25] * channels
    sub_model = SubModel(build(config.backbone, scale.size), scale.size, scale.size, channels, mean, std)
    return Trainer(sub_model, config, pos_weight=1.0, max_epochs=1000, device=torch.device(scale.device))


def _feed(scale: Scale, batch: int, steps: int, channels: int) -> Feed:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * batch, channels, scale.size, scale.size), np.uint8)
    labels = (np.arange(len(images)) % 2).astype(np.float32)
    return Feed(cast(ImageSet, Held(images)), labels, batch, torch.device(scale.device))


def joint(scale: Scale, folder: Path) -> Verdict:
    """Call a joint model with ever other numbers and sizes of images."""
    torch.manual_seed(0)
    members = [SubModel(build(scale.backbone, scale.size), scale.size, scale.size, 1, [0.5], [0.2]) for _ in range(2)]
    model = JointModel(["a", "b"], members, [0.5, 0.5]).eval()
    write_torchscript(
        model, UPath(folder / "x.pt"), joint_metadata(["a", "b"]), [torch.zeros(1, 40, 50, dtype=torch.uint8)]
    )
    content = (folder / "x.pt").read_bytes()
    here, there = (load_torchscript(content, device)[0] for device in ("cpu", scale.device))
    rng, times, apart = np.random.default_rng(0), [], 0.0
    allow_tf32("fp32")
    for call in range(scale.calls):
        shape = (int(rng.integers(1, 9)), 1, *map(int, rng.integers(40, 300, 2)))
        images = torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
        began = time.perf_counter()
        with torch.inference_mode():
            found = there(images.to(scale.device)).cpu()
            times.append(time.perf_counter() - began)
            if call % 5 == 0:
                apart = max(apart, float((found - here(images)).abs().max()))
    told = f"apart from the CPU by {apart:.1e}; calls took {median(times):.3f} s (median), {max(times):.2f} s at most"
    return Verdict(apart < 1e-3, told, {"seconds": times})


def memory(scale: Scale, folder: Path) -> Verdict:
    """Train ResNet-101 in a twentieth of the memory; batches must be split until they fit."""
    if not scale.is_gpu:
        return Verdict(None, "needs a GPU")
    config = Config(backbone="resnet101", weights=None, batch_size=64)
    tried = []

    def attempt(parts: int) -> EarlyEnd | None:
        tried.append(parts)
        trainer = _trainer(scale, config, channels=3)
        trainer.micro_batches = parts
        feed = _feed(scale, 64, 2, channels=3)
        try:
            next(trainer.epochs(lambda epoch: feed.shuffled(epoch, 0, Augment()), feed.ordered, len(feed)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return EarlyEnd(Cause.OUT_OF_MEMORY, str(error))
        return None

    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        end = in_micro_batches(attempt, config.batch_size)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return Verdict(end is None and len(tried) > 1, f"tried in parts of {tried}", {"tried": tried})


def speed(scale: Scale, folder: Path) -> Verdict:
    """Measure training with colour images against the network alone, whose images are on the device."""
    figures = {batch: _rates(scale, batch) for batch in scale.batches}
    told = [f"{batch}: {own['images_per_s']:.0f} images/s, {own['share']:.0%} of it" for batch, own in figures.items()]
    return Verdict(None, f"in batches of {', '.join(told)}", {str(batch): own for batch, own in figures.items()})


def _rates(scale: Scale, batch: int) -> dict[str, float]:
    config, feed = Config(backbone=scale.backbone, weights=None, batch_size=batch), _feed(scale, batch, scale.steps, 3)
    few = list(feed.ordered())[:1]
    kept = few * scale.steps
    rates = []
    for batches in (lambda epoch: feed.shuffled(epoch, 0, Augment()), lambda epoch: kept):
        epochs = _trainer(scale, config, channels=3).epochs(batches, lambda: few, len(feed))
        rates.append(max(next(epochs)["images_per_s"] for _ in range(3)))
    return {"images_per_s": rates[0], "network_alone": rates[1], "share": rates[0] / rates[1]}


def augmentation(scale: Scale, folder: Path) -> Verdict:
    """Measure each augmentation of batches of 128."""
    kinds = {"flips": {}, "rotation": {"rotation": 10}, "crop": {"crop": 0.2}, "brightness": {"brightness": 0.2}}
    batch, figures = max(scale.batches[:2]), {}
    for name, settings in kinds.items():
        feed, augment = _feed(scale, batch, scale.steps, channels=1), Augment.model_validate(settings)
        times = []
        for epoch in range(3):
            began = time.perf_counter()
            for _ in feed.shuffled(epoch, 0, augment):
                pass
            _wait(scale)
            times.append(time.perf_counter() - began)
        figures[name] = len(feed) / min(times)
    return Verdict(None, ", ".join(f"{name} {rate:,.0f} images/s" for name, rate in figures.items()), figures)


def _wait(scale: Scale) -> None:
    if scale.is_gpu:
        torch.cuda.synchronize()


def process(scale: Scale, folder: Path) -> Verdict:
    """Train ten trials of several networks in one process; its memory must not grow from trial to trial."""
    reserved = []
    for number in range(10):
        keep_pages()
        config = Config(backbone=scale.mixed[number % len(scale.mixed)], weights=None, batch_size=8, ema_decay=0.9)
        trainer, feed = _trainer(scale, config, channels=1), _feed(scale, 8, 4, channels=1)
        next(trainer.epochs(partial(feed.shuffled, seed=0, augment=Augment()), feed.ordered, len(feed)))
        del trainer, feed
        if scale.is_gpu:
            torch.cuda.empty_cache()
            reserved.append(torch.cuda.memory_reserved() / 1e6)
    if not reserved:
        return Verdict(None, "ten trials ran in one process")
    told = f"{reserved[2]:.0f} MB reserved after three trials, {reserved[-1]:.0f} MB after ten"
    return Verdict(reserved[-1] <= reserved[2] + 100, told, {"reserved_mb": reserved})


def share(scale: Scale, folder: Path) -> Verdict:
    """Measure trials that share the device, against one after the other."""
    load = Load(scale.device, (scale.mixed[0],), size=scale.size, steps=scale.steps, runs=3)
    rows = [sharing(load, scale.mixed[0], min(scale.batches), count) for count in scale.at_once]
    told = ", ".join(f"{row['name']}: {row['ratio']:.2f}" for row in rows)
    return Verdict(None, told, {row["name"]: row["ratio"] for row in rows})


def resume(scale: Scale, folder: Path) -> Verdict:
    """Compare a resumed training with an undisturbed one; as it is, without benchmarks of cuDNN, and deterministic."""
    figures = {}
    for name in ("benchmark", "no benchmark", "deterministic"):
        with _cudnn(name):
            losses = [_losses(scale, folder / f"{name}-{parts}", parts) for parts in ((4,), (2, 4))]
            figures[name] = max(abs(a - b) for a, b in zip(*losses, strict=True))
    told = ", ".join(f"{name} {apart:.1e}" for name, apart in figures.items())
    return Verdict(figures["deterministic"] <= 1e-6, f"training losses apart: {told}", figures)


def _losses(scale: Scale, path: Path, sessions: tuple[int, ...]) -> list[float]:
    """Return the training losses of four epochs, trained in sessions that end at these epochs."""
    path.mkdir(parents=True)
    feed = _feed(replace(scale, size=32), 16, 4, channels=1)
    given = assignment(TrialFolder(UPath(path)), epochs=4, backbone=scale.mixed[0], precision="fp32")
    for last in sessions:
        session = Session(given, torch.device(scale.device))
        trainer = session.trainer
        epochs = trainer.epochs(lambda e: feed.shuffled(e, 0, Augment()), feed.ordered, len(feed))
        while trainer.epoch < last:
            session.save(next(epochs))
    return given.folder.epochs().train_loss.tolist()


@contextmanager
def _cudnn(mode: str) -> Iterator[None]:
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cudnn.benchmark = mode == "benchmark"
    torch.use_deterministic_algorithms(mode == "deterministic", warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        if before is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]


def refit(scale: Scale, folder: Path) -> Verdict:
    """Refit a task with one worker a fold; two workers on one GPU are refused."""
    trained = _searched(scale, folder)
    ovr_ray.refit(trained, 2, tasks=["crack"])
    recipe = trained.path / "recipe.yaml"
    whole = recipe.read_text()
    recipe.write_text(re.sub(r"gpu: [\d.]+", "gpu: 0.5", whole))
    refused = ""
    try:
        ovr_ray.refit(trained, 2, workers=2, tasks=["inactive"])
    except BadInput as error:
        refused = str(error).splitlines()[0]
    finally:
        recipe.write_text(whole)
    return Verdict("--workers 2" in refused, f"refused: {refused}")


def prediction(scale: Scale, folder: Path) -> Verdict:
    """Predict more images than one process does, on the cluster; the joint model is that of the search."""
    trained = _searched(scale, folder)
    if not trained.joint_model.exists():
        ovr_ray.combine(trained)
    files = sorted(map(str, (folder / "cells").rglob("*.png"))) * 4
    with cluster.connected():
        began = time.monotonic()
        table = ovr_ray.predict(trained, files)
        taken = time.monotonic() - began
    return Verdict(
        bool((table.error == "").all()), f"{len(files)} images in {taken:.1f} s, Ray running", {"seconds": taken}
    )


CHECKS: Final[dict[str, Callable[[Scale, Path], Verdict]]] = {
    "machine": machine,
    "search": search,
    "precision": precision,
    "waits": waits,
    "joint": joint,
    "memory": memory,
    "speed": speed,
    "augmentation": augmentation,
    "process": process,
    "share": share,
    "resume": resume,
    "refit": refit,
    "prediction": prediction,
}
"""The checks by name, in the order in which they run."""
