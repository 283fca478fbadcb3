"""A sub-model, epoch by epoch. Knows nothing of Ray: give it batches, it gives back what to report."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ovr_ray.model import backbones
from ovr_ray.model.averaging import averaged
from ovr_ray.model.metrics import average_precision, choose_threshold, f1_at
from ovr_ray.model.schedule import learning_rate
from ovr_ray.model.sub_model import SubModel
from ovr_ray.model.tally import Tally
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
    workers : int
        Processes of ``torch.distributed`` that train this together. All are given the same batches; each takes its
        share of every batch, and gradients are averaged: the same step, but for batch norms, whose statistics are a
        share's (the first worker's are kept).

    Attributes
    ----------
    sub_model : SubModel
        What is validated and to be saved: the one that was given, or, with ``ema_decay``, its moving average.
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
        workers: int = 1,
    ) -> None:
        self.config, self.max_epochs, self.device, self.seed, self.goal = config, max_epochs, device, seed, goal
        self._trained = sub_model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        _activate_out_of_place(self._trained)
        self._average = averaged(self._trained, config.ema_decay) if config.ema_decay else None
        self.sub_model = cast(SubModel, self._average.module) if self._average else self._trained
        self._loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, device=device))
        self.optimizer, self._lr_factors = _optimizer(sub_model, config)
        self.epoch, self.parts, self._workers = 0, parts, workers
        self.decision_threshold = 0.5
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self._autocast = native if config.precision == "auto" else config.precision == "bf16"

    def state_dict(self) -> dict[str, Any]:
        """What training needs to go on, beside the weights of :attr:`sub_model`: tensors and plain values only."""
        state = {"epoch": self.epoch, "optimizer": self.optimizer.state_dict()}
        if self._average:
            state |= {"trained": self._trained.state_dict(), "averaged_steps": int(self._average.n_averaged)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the epoch that :meth:`state_dict` was taken at."""
        self.epoch = state["epoch"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average:
            self._trained.load_state_dict(state["trained"])
            self._average.n_averaged.fill_(state["averaged_steps"])

    def epochs(
        self, train: Callable[[int], Batches], val: Callable[[], Batches], images: int
    ) -> Iterator[dict[str, Any]]:
        """Train and validate, yielding flat metrics after every epoch until ``max_epochs``.

        Parameters
        ----------
        train : callable
            From an epoch's number (from 1) to its batches.
        val : callable
            To the validation batches.
        images : int
            That an epoch's training batches have in all: what a warm-up is measured by.

        Yields
        ------
        dict
            ``lr`` is the head's at the epoch's last step; ``train_`` figures are of the weights as they were trained,
            ``val_`` ones and the threshold of :attr:`sub_model`; both losses are the cross-entropy, positives weighted.

        Raises
        ------
        Diverged
            If the training loss is not finite.
        """
        while self.epoch < self.max_epochs:
            self.epoch += 1
            _allow_tf32(self.config.precision == "tf32")
            yield {"epoch": self.epoch, **self._train(train(self.epoch), images), **self._validate(val())}

    def _train(self, batches: Batches, images: int) -> dict[str, Any]:
        torch.manual_seed(_mixed(self.seed, self.epoch))
        self._trained.train()
        self._trained.set_frozen(self.epoch < self.config.unfreeze_epoch)
        network: nn.Module = self._trained
        if self._workers > 1:  # anew each epoch, as it keeps in mind what was frozen when it was made
            network = DistributedDataParallel(self._trained)
        start, tally, lr, seen = time.perf_counter(), Tally(), 0.0, 0
        for pixels, labels in _none_smaller(batches, 2 * self._workers):
            lr = self._set_rate((seen + len(labels) / 2) / images)
            seen += len(labels)
            self.optimizer.zero_grad(set_to_none=True)
            parts = min(self.parts, len(labels) // self._workers // 2)  # so many in every worker
            for part in _parts_of(*_share_of(pixels, labels, self._workers), parts):
                logits, targets = self._forward(network, *part)
                loss = self._loss(logits, targets)
                (loss * (self._workers * len(logits) / len(labels))).backward()
                tally.add(logits.detach(), targets, loss.detach())
            self.optimizer.step()
            if self._average:
                self._average.update_parameters(self._trained)
            self._refuse_divergence(tally, behind=1)  # to ask for this step's loss would have a GPU wait for us
        self._refuse_divergence(tally, behind=0)
        if self._workers > 1:
            tally = tally.of_all_workers()
        speed = seen / (time.perf_counter() - start)
        return {"lr": lr, "images_per_s": speed, **tally.metrics("train")}

    def _refuse_divergence(self, tally: Tally, behind: int) -> None:
        """Look at the losses that were not looked at yet, but for the last few."""
        for loss in tally.unseen_losses(behind):
            if self._workers > 1:  # if one worker gives up, all do, or the others would wait for it
                distributed.all_reduce(loss)
            if not math.isfinite(loss):
                raise Diverged(f"the training loss became {loss.item()} in epoch {self.epoch}")

    def _set_rate(self, share: float) -> float:
        lr = learning_rate(self.config, self.epoch, self.max_epochs, share)
        for group, factor in zip(self.optimizer.param_groups, self._lr_factors, strict=True):
            group["lr"] = factor * lr
        return lr

    @torch.inference_mode()
    def _validate(self, batches: Batches) -> dict[str, Any]:
        self.sub_model.eval()
        tally = Tally()
        for images, labels in batches:
            logits, targets = self._forward(self.sub_model, images, labels)
            tally.add(logits, targets, self._loss(logits, targets))
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

    def _forward(
        self, sub_model: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            logits = sub_model(images)
        return logits.float(), labels.to(self.device, non_blocking=True)


def _activate_out_of_place(network: nn.Module) -> None:
    """Where backward wants what went into an activation, autograd copies it before it is overwritten (not for ReLU)."""
    for module in network.modules():
        if isinstance(module, nn.Hardtanh | nn.SiLU | nn.Hardswish):  # ReLU6 is a Hardtanh
            module.inplace = False


def _allow_tf32(allowed: bool) -> None:
    """Of the whole process, which may have had another trial before; torch allows it to convolutions by default."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _none_smaller(batches: Batches, least: int) -> Batches:
    """A last batch of fewer images joins the one before: batch norms have no statistics of a single value."""
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for batch in batches:
        if held and len(batch[1]) < least:
            held = [(torch.cat([held[0][0], batch[0]]), torch.cat([held[0][1], batch[1]]))]
        else:
            yield from held
            held = [batch]
    yield from held


def _share_of(images: torch.Tensor, labels: torch.Tensor, workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This worker's, of a batch that all were given."""
    if workers == 1:
        return images, labels
    rank = distributed.get_rank()
    return images.tensor_split(workers)[rank], labels.tensor_split(workers)[rank]


def _parts_of(images: torch.Tensor, labels: torch.Tensor, parts: int) -> Batches:
    """A batch in so many parts, or fewer, so that each has two images."""
    parts = max(1, min(parts, len(labels) // 2))
    return zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)


def choose_device(gpus_assigned: float) -> torch.device:
    """CUDA where Ray assigned a GPU that torch sees; Apple's ``mps``, which Ray does not count; else the CPU."""
    if gpus_assigned and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def keep_pages() -> None:
    """Have glibc keep freed buffers, as training on the CPU is bound by page faults otherwise; elsewhere nothing.

    1.5 to 1.9 times the images/s of EfficientNet-Lite0 on 2 cores, for more resident memory (``mallopt(3)``). What was
    kept until now and is free is given back: a trial's buffers do not fit another's, and they would add up.
    """
    if sys.platform == "linux":
        glibc = ctypes.CDLL(None)
        mallopt = getattr(glibc, "mallopt", None)
        if mallopt:  # musl has none
            gc.collect()  # a network and its optimizer may hold each other
            glibc.malloc_trim(0)
            trim_threshold, mmap_threshold = -1, -3
            mallopt(mmap_threshold, 1 << 30)
            mallopt(trim_threshold, (1 << 31) - 1)


def _optimizer(sub_model: SubModel, config: Config) -> tuple[torch.optim.Optimizer, list[float]]:
    """And by what factor each of its groups of parameters differs from the rate."""
    groups, factors = [{"params": list(sub_model.parameters())}], [1.0]
    if config.body_lr_factor != 1:  # one group for all otherwise: what older checkpoints hold
        head = list(backbones.head(sub_model.network).parameters())
        own = {id(parameter) for parameter in head}
        body = [parameter for parameter in sub_model.parameters() if id(parameter) not in own]
        groups, factors = [{"params": body}, {"params": head}], [config.body_lr_factor, 1.0]
    decay = config.weight_decay
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(groups, config.lr, momentum=momentum, weight_decay=decay, nesterov=True), factors
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, weight_decay=decay), factors


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
