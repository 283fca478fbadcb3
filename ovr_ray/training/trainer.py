"""Train a sub-model epoch by epoch. Knows nothing of Ray: it is given batches, and yields metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, assert_never

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ovr_ray.model import SubModel, activate_out_of_place, average_precision, choose_threshold, f1_at
from ovr_ray.recipe import Config, Precision, ThresholdGoal
from ovr_ray.training.averaging import MovingAverage
from ovr_ray.training.precision import allow_tf32, keep_float32, resolved
from ovr_ray.training.schedule import learning_rate
from ovr_ray.training.tally import LossWatch, Tally

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Images, uint8 (N, C, H, W), and labels, float32 (N)."""

EpochRow = dict[str, Any]
"""Metrics of one epoch, by the columns of ``epochs.csv``; :meth:`Trainer.epochs` documents them."""


class Diverged(Exception):
    """The loss, or the network's output, is not a finite number."""


class Trainer:
    """Trains one sub-model.

    All randomness of an epoch follows from the seed and the epoch's number. A trainer that is restored from the end of
    an epoch therefore continues as if it had never stopped, and no random state has to be saved.

    Parameters
    ----------
    sub_model : SubModel
    config : Config
    pos_weight : float
        Weight of a positive image in the loss.
    max_epochs : int
        Epoch at which the cosine schedule, and training, ends.
    device : torch.device
    seed : int
    goal : ThresholdGoal
        How :attr:`decision_threshold` is chosen.
    micro_batches : int
        Number of slices of a batch whose gradients are summed. More of them need less memory; the step is the same,
        except for batch norms, whose statistics are those of a slice. A slice has two images or more.
    workers : int
        Processes of ``torch.distributed`` that train this sub-model together. All are given the same batches. Each
        takes its share of every batch, and gradients are averaged: the step is the same as one worker's, except for
        batch norms, whose statistics are those of a share. Those of rank 0 are kept.

    Attributes
    ----------
    sub_model : SubModel
        The sub-model that is validated and saved: the given one, or, with ``ema_decay``, its moving average.
    precision : Precision
        The config's; never ``auto``, but what it means on this device.
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
        micro_batches: int = 1,
        workers: int = 1,
    ) -> None:
        self.config, self.max_epochs, self.device, self.seed, self.goal = config, max_epochs, device, seed, goal
        self._trained = sub_model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        activate_out_of_place(self._trained)
        self.precision = resolved(config.precision, device)
        if self.precision == "bf16":
            keep_float32(self._trained, device)
        self._average = MovingAverage(self._trained, config.ema_decay) if config.ema_decay else None
        self.sub_model = self._average.sub_model if self._average else self._trained
        self._loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, device=device))
        groups, self._lr_factors = _parameter_groups(sub_model, config)
        self._is_fused = device.type == "cuda"  # one kernel for all weights; no gain on CPUs
        self.optimizer = _optimizer(groups, config, self._is_fused)
        self.epoch, self.micro_batches, self._workers = 0, micro_batches, workers
        self.decision_threshold = 0.5

    def state_dict(self) -> dict[str, Any]:
        """Return the state that training resumes from, without the weights of :attr:`sub_model`.

        It holds only tensors and plain values.
        """
        state = {"epoch": self.epoch, "optimizer": self.optimizer.state_dict()}
        if self._average:
            state |= {"trained": self._trained.state_dict(), "averaged_steps": self._average.steps}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the epoch in which :meth:`state_dict` was called."""
        self.epoch = state["epoch"]
        for group in state["optimizer"]["param_groups"]:  # a checkpoint may come from another device
            group["fused"] = self._is_fused or None
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average:
            self._trained.load_state_dict(state["trained"])
            self._average.steps = state["averaged_steps"]

    def epochs(self, train: Callable[[int], Batches], val: Callable[[], Batches], images: int) -> Iterator[EpochRow]:
        """Train and validate; yield the metrics of every epoch until ``max_epochs``.

        Parameters
        ----------
        train : callable
            Takes the number of an epoch (counted from 1) and returns its batches.
        val : callable
            Returns the validation batches.
        images : int
            Number of images in the training batches of an epoch.

        Yields
        ------
        dict
            Columns of ``epochs.csv``: ``epoch``; ``lr``, the head's learning rate at the last step; ``images_per_s`` of
            training; ``train_loss`` and the confusion counts ``train_tn`` … ``train_tp`` at probability 0.5, all of the
            weights as they were during the epoch; the same with ``val_``, of :attr:`sub_model` after it; ``threshold``,
            at which validation F1 is highest, and ``val_f1`` there; ``val_f1_at_half``; ``val_average_precision``. Both
            losses are the cross-entropy with weighted positives.

        Raises
        ------
        Diverged
            If the training loss, or an output of the network, is not finite.
        """
        while self.epoch < self.max_epochs:
            self.epoch += 1
            yield {"epoch": self.epoch, **self._train(train(self.epoch), images), **self._validate(val())}

    def _train(self, batches: Batches, images: int) -> dict[str, Any]:
        rank = distributed.get_rank() if self._workers > 1 else 0
        torch.manual_seed(_mixed(self.seed, self.epoch, rank))  # for dropout, which differs by rank
        allow_tf32(self.precision)
        self._trained.train()
        self._trained.set_frozen(self.epoch < self.config.unfreeze_epoch)
        network: nn.Module = self._trained
        if self._workers > 1:  # wrapped again each epoch: it remembers which parameters were frozen when it was made
            network = DistributedDataParallel(self._trained)
        watch = LossWatch(self.device, self._workers)
        start, tally, lr, seen = time.perf_counter(), Tally(), 0.0, 0
        for pixels, labels in _none_smaller(batches, 2 * self._workers):
            lr = self._set_rate((seen + len(labels) / 2) / images)
            seen += len(labels)
            self.optimizer.zero_grad(set_to_none=True)
            count = min(self.micro_batches, len(labels) // self._workers // 2)  # the same in every worker
            for micro_batch in _micro_batches(*_share_of(pixels, labels, self._workers), count):
                logits, targets = self._forward(network, *micro_batch, self.precision)
                loss = self._loss(logits, targets)
                (loss * (self._workers * len(logits) / len(labels))).backward()
                tally.add(logits.detach(), targets, loss.detach())
                watch.add(loss.detach())
            self.optimizer.step()
            if self._average:
                self._average.update()
            self._refuse_divergence(watch.after_step())
        self._refuse_divergence(watch.at_end())
        if self._workers > 1:
            tally = tally.gathered()
        speed = seen / (time.perf_counter() - start)
        return {"lr": lr, "images_per_s": speed, **tally.metrics("train")}

    def _refuse_divergence(self, losses: float) -> None:
        if not math.isfinite(losses):
            raise Diverged(f"the training loss became {losses} in epoch {self.epoch}")

    def _set_rate(self, share: float) -> float:
        lr = learning_rate(self.config, self.epoch, self.max_epochs, share)
        for group, factor in zip(self.optimizer.param_groups, self._lr_factors, strict=True):
            group["lr"] = factor * lr
        return lr

    @torch.inference_mode()
    def _validate(self, batches: Batches) -> dict[str, Any]:
        self.sub_model.eval()
        allow_tf32("fp32")
        tally = Tally()
        for images, labels in batches:
            # in float32, as the joint model computes: scores and threshold are for its logits
            logits, targets = self._forward(self.sub_model, images, labels, "fp32")
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
        self, sub_model: nn.Module, images: torch.Tensor, labels: torch.Tensor, precision: Precision
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = sub_model(images)
        return logits.float(), labels.to(self.device, non_blocking=True)


def _none_smaller(batches: Batches, least: int) -> Batches:
    """Yield batches; a last batch of fewer images joins the one before. Batch norms need more than one value."""
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for batch in batches:
        if held and len(batch[1]) < least:
            held = [(torch.cat([held[0][0], batch[0]]), torch.cat([held[0][1], batch[1]]))]
        else:
            yield from held
            held = [batch]
    yield from held


def _share_of(images: torch.Tensor, labels: torch.Tensor, workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's share of a batch that all ranks were given."""
    if workers == 1:
        return images, labels
    rank = distributed.get_rank()
    return images.tensor_split(workers)[rank], labels.tensor_split(workers)[rank]


def _micro_batches(images: torch.Tensor, labels: torch.Tensor, count: int) -> Batches:
    """Split a batch into ``count`` slices, or fewer, so that each has two images."""
    count = max(1, min(count, len(labels) // 2))
    return zip(images.tensor_split(count), labels.tensor_split(count), strict=True)


def _parameter_groups(sub_model: SubModel, config: Config) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the optimizer's groups, and for each the factor by which the learning rate is multiplied."""
    if config.body_lr_factor == 1:  # one group for all, as checkpoints of older versions have it
        return [{"params": list(sub_model.parameters())}], [1.0]
    head = list(sub_model.head().parameters())
    own = {id(parameter) for parameter in head}
    body = [parameter for parameter in sub_model.parameters() if id(parameter) not in own]
    return [{"params": body}, {"params": head}], [config.body_lr_factor, 1.0]


def _optimizer(groups: list[dict[str, Any]], config: Config, is_fused: bool) -> torch.optim.Optimizer:
    decay, momentum, fused = config.weight_decay, config.momentum, is_fused or None
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups, config.lr, weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, config.lr, weight_decay=decay, fused=fused)
        case "sgd":
            return torch.optim.SGD(groups, config.lr, momentum, weight_decay=decay, nesterov=momentum > 0, fused=fused)
        case _:
            assert_never(config.optimizer)


def _mixed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, *([rank] if rank else [])]).generate_state(1)[0])
