"""A sub-model, epoch by epoch. Knows nothing of Ray: give it batches, it gives back what to report."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ovr_ray.model.metrics import Confusion, average_precision, choose_threshold, f1_at
from ovr_ray.model.sub_model import SubModel
from ovr_ray.recipe import Config, ThresholdGoal

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Images, uint8 (N, C, H, W), and labels, float32 (N)."""


class Diverged(Exception):
    """The loss is no longer a number."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's, or the machine's, memory did not suffice."""
    told = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # the CPU, Apple's GPUs, NVIDIA's libraries
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in told)


class Trainer:
    """Trains one sub-model.

    All randomness of an epoch follows from the seed and the epoch's number, so a trainer that is restored from the
    end of an epoch goes on as if nothing had happened, with no random state to keep.

    Parameters
    ----------
    sub_model : SubModel
    config : Config
    pos_weight : float
        Weight of a positive image in the loss.
    max_epochs : int
        Where the cosine schedule ends, and training.
    device : torch.device
    seed : int
    goal : ThresholdGoal
        What :attr:`decision_threshold` aims at.
    parts : int
        A batch's gradients are summed over so many parts of it, each of two images or more: less memory, the same
        step, but for batch norms, whose statistics are a part's.
    """

    def __init__(
        self,
        sub_model: SubModel,
        config: Config,
        *,
        pos_weight: float,
        max_epochs: int,
        device: torch.device,
        seed: int = 0,
        goal: ThresholdGoal = "f1",
        parts: int = 1,
    ) -> None:
        self.config, self.max_epochs, self.device, self.seed, self.goal = config, max_epochs, device, seed, goal
        self.sub_model = sub_model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, device=device))
        self.optimizer = _optimizer(sub_model, config)
        self.epoch, self.parts = 0, parts
        self.decision_threshold = 0.5
        self._autocast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def state_dict(self) -> dict[str, Any]:
        """What training needs to go on, beside the weights: tensors and plain values only."""
        return {"epoch": self.epoch, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the epoch that :meth:`state_dict` was taken at."""
        self.epoch = state["epoch"]
        self.optimizer.load_state_dict(state["optimizer"])

    def epochs(self, train: Callable[[int], Batches], val: Callable[[], Batches]) -> Iterator[dict[str, Any]]:
        """Train and validate, yielding flat metrics after every epoch until ``max_epochs``.

        Parameters
        ----------
        train : callable
            From an epoch's number (from 1) to its batches.
        val : callable
            To the validation batches.

        Raises
        ------
        Diverged
            If the training loss is not finite.
        """
        while self.epoch < self.max_epochs:
            self.epoch += 1
            yield {"epoch": self.epoch, **self._train(train(self.epoch)), **self._validate(val())}

    def _train(self, batches: Batches) -> dict[str, Any]:
        torch.manual_seed(_mixed(self.seed, self.epoch))
        lr = learning_rate(self.config, self.epoch, self.max_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.sub_model.train()
        self.sub_model.set_frozen(self.epoch < self.config.unfreeze_epoch)
        start, tally = time.perf_counter(), _Tally()
        for images, labels in _none_of_one(batches):
            self.optimizer.zero_grad(set_to_none=True)
            for part in _parts_of(images, labels, self.parts):
                logits, loss = self._forward(*part)
                if not math.isfinite(loss.item()):
                    raise Diverged(f"the training loss became {loss.item()} in epoch {self.epoch}")
                (loss * (len(logits) / len(labels))).backward()
                tally.add(logits.detach(), part[1], loss.item())
            self.optimizer.step()
        speed = tally.images / (time.perf_counter() - start)
        return {"lr": lr, "images_per_s": speed, **tally.metrics("train")}

    @torch.inference_mode()
    def _validate(self, batches: Batches) -> dict[str, Any]:
        self.sub_model.eval()
        tally = _Tally()
        for images, labels in batches:
            logits, loss = self._forward(images, labels)
            tally.add(logits, labels, loss.item())
        truth, probability = tally.truth(), tally.probability()
        if not np.isfinite(probability).all():
            raise Diverged(f"the network's outputs are no longer numbers in epoch {self.epoch}")
        threshold = choose_threshold(truth, probability)
        self.decision_threshold = choose_threshold(truth, probability, self.goal)
        at_half = tally.metrics("val")
        return at_half | {
            "val_f1": f1_at(threshold)(truth, probability),
            "threshold": threshold,
            "val_f1_at_half": f1_at(0.5)(truth, probability),
            "val_average_precision": average_precision(truth, probability),
        }

    def _forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.sub_model(images)
        return logits, self.loss(logits, labels.to(self.device, non_blocking=True))


def _none_of_one(batches: Batches) -> Batches:
    """A last batch of one image joins the one before: batch norms have no statistics of a single value."""
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for batch in batches:
        if held and len(batch[1]) == 1:
            held = [(torch.cat([held[0][0], batch[0]]), torch.cat([held[0][1], batch[1]]))]
        else:
            yield from held
            held = [batch]
    yield from held


def _parts_of(images: torch.Tensor, labels: torch.Tensor, parts: int) -> Batches:
    """A batch in so many parts, or fewer, so that each has two images."""
    parts = max(1, min(parts, len(labels) // 2))
    return zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)


class _Tally:
    """Sums over an epoch's batches."""

    def __init__(self) -> None:
        self.images, self._loss = 0, 0.0
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: float) -> None:
        self.images += len(labels)
        self._loss += loss * len(labels)
        self._logits.append(logits)
        self._labels.append(labels)

    def truth(self) -> np.ndarray:
        return torch.cat(self._labels).cpu().numpy()

    def probability(self) -> np.ndarray:
        return torch.cat(self._logits).double().sigmoid().cpu().numpy()

    def metrics(self, part: str) -> dict[str, Any]:
        """Loss and confusion counts at probability 0.5."""
        confusion = Confusion.of(self.truth(), self.probability() >= 0.5)
        counts = {f"{part}_{name}": count for name, count in confusion.counts().items()}
        return {f"{part}_loss": self._loss / self.images, **counts}


def learning_rate(config: Config, epoch: int, max_epochs: int) -> float:
    """Of an epoch, counted from 1; the same through all its steps."""
    if isinstance(config.schedule, dict):
        return config.schedule[max(start for start in config.schedule if start <= epoch)]
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * (epoch - 1) / max_epochs)) / 2
    return config.lr


def choose_device(gpus_assigned: float) -> torch.device:
    """CUDA where Ray assigned a GPU that torch sees; Apple's ``mps``, which Ray does not count; else the CPU."""
    if gpus_assigned and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def keep_pages() -> None:
    """Have glibc keep freed buffers, as training on the CPU is bound by page faults otherwise; elsewhere nothing.

    1.5 to 1.9 times the images/s of EfficientNet-Lite0 on 2 cores, for more resident memory (``mallopt(3)``).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt:  # musl has none
            trim_threshold, mmap_threshold = -1, -3
            mallopt(mmap_threshold, 1 << 30)
            mallopt(trim_threshold, (1 << 31) - 1)


def _optimizer(sub_model: SubModel, config: Config) -> torch.optim.Optimizer:
    parameters, decay = sub_model.parameters(), config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=decay, nesterov=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, config.lr, weight_decay=decay)


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
