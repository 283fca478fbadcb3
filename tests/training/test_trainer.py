from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn
from torch.profiler import ProfilerActivity, profile

from ovr_ray.model import Diverged, SubModel, Trainer, build, choose_device, is_out_of_memory, learning_rate
from ovr_ray.model.backbones import head
from ovr_ray.recipe import Config
from tests.support import BACKBONE, EVERY_OPTION

CPU = torch.device("cpu")
METRICS = {
    *("epoch", "train_loss", "val_loss", "val_f1", "threshold", "val_f1_at_half", "val_average_precision"),
    *("images_per_s", "lr"),
    *(f"{part}_{count}" for part in ("train", "val") for count in ("tn", "fp", "fn", "tp")),
}


IMAGES = 64
"""In :func:`batches`."""


def batches(epoch: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Dark images are negative, bright ones positive."""
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(4):
        labels = (torch.arange(16) % 4 == 0).float()
        images = torch.randint(0, 100, (16, 1, 32, 32), generator=generator) + 120 * labels.view(-1, 1, 1, 1).long()
        yield images.to(torch.uint8), labels


def trainer(max_epochs: int = 4, pos_weight: float = 3.0, workers: int = 1, **config: Any) -> Trainer:
    torch.manual_seed(0)
    given = Config(**{"backbone": BACKBONE, "weights": None, "lr": 3e-3} | config)
    sub_model = SubModel(build(given.backbone, 32), 32, 32, 1, [0.3], [0.2])
    return Trainer(sub_model, given, pos_weight=pos_weight, max_epochs=max_epochs, device=CPU, seed=5, workers=workers)


def run(given: Trainer) -> list[dict[str, Any]]:
    return list(given.epochs(batches, lambda: batches(99), IMAGES))


def test_it_learns_and_reports_every_metric_each_epoch() -> None:
    epochs = run(trainer(max_epochs=12))
    assert [row["epoch"] for row in epochs] == list(range(1, 13))
    assert set(epochs[0]) == METRICS
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2
    assert epochs[-1]["val_average_precision"] > 0.9
    assert sum(epochs[0][f"val_{count}"] for count in ("tn", "fp", "fn", "tp")) == 64


@pytest.mark.parametrize(("precision", "computed"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_it_computes_in_the_asked_precision_and_keeps_float32_weights(precision: str, computed: torch.dtype) -> None:
    given = trainer(max_epochs=12, precision=precision)
    convolution = next(module for module in given.sub_model.modules() if isinstance(module, nn.Conv2d))
    seen = set()
    convolution.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    epochs = run(given)
    assert seen == {computed}
    assert {parameter.dtype for parameter in given.sub_model.parameters()} == {torch.float32}
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2


def test_tf32_is_for_the_trial_that_asks_for_it_alone() -> None:
    """Trials follow each other in one process."""
    allowed = []
    for precision in ("tf32", "fp32"):
        run(trainer(max_epochs=1, precision=precision))
        allowed.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
    assert allowed == [(True, True), (False, False)]


@pytest.mark.parametrize(
    "config",
    [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, EVERY_OPTION],
    ids=["adam", "adamw", "sgd", "every option"],
)
def test_going_on_from_a_saved_state_is_as_if_never_interrupted(config: dict[str, Any]) -> None:
    undisturbed = run(trainer(**config))
    first = trainer(**config)
    epochs = first.epochs(batches, lambda: batches(99), IMAGES)
    before = [next(epochs), next(epochs)]
    state, weights = first.state_dict(), first.sub_model.state_dict()
    second = trainer(**config)
    second.sub_model.load_state_dict(weights)
    second.load_state_dict(state)
    torch.manual_seed(1234)  # a new process draws other numbers
    rows = [*before, *run(second)]
    for metric in ("train_loss", "val_loss", "threshold", "lr"):
        assert [row[metric] for row in rows] == pytest.approx([row[metric] for row in undisturbed], abs=1e-6)


def test_no_activation_is_copied_before_it_is_overwritten() -> None:
    training = trainer(backbone="mobilenet_v3_small")  # of in-place ReLUs, which need no copy, and Hardswishs
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        next(training.epochs(batches, lambda: batches(99), IMAGES))
    operators = {event.key for event in profiler.key_averages()}
    assert {"aten::relu_", "aten::hardswish"} <= operators
    assert "aten::hardswish_" not in operators


def test_the_body_is_trained_from_its_epoch_on() -> None:
    given = trainer(unfreeze_epoch=3)
    first_layer = next(given.sub_model.network.parameters())
    values = [first_layer.detach().clone() for _ in given.epochs(batches, lambda: batches(99), IMAGES)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


def test_a_loss_that_is_no_number_ends_training() -> None:
    with pytest.raises(Diverged, match="epoch 1"):
        run(trainer(lr=1e38, optimizer="sgd", schedule="constant"))


def test_a_last_batch_of_one_image_is_trained_on_too() -> None:
    def with_one_left(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from batches(epoch)
        yield torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1)

    row = next(trainer().epochs(with_one_left, lambda: batches(99), IMAGES + 1))
    assert sum(row[f"train_{count}"] for count in ("tn", "fp", "fn", "tp")) == 65


def test_the_rate_is_set_at_every_step_and_the_last_ones_is_reported() -> None:
    given = trainer(max_epochs=2, warmup_epochs=1, body_lr_factor=0.5)
    rates: list[tuple[float, float]] = []
    given.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(tuple(group["lr"] for group in optimizer.param_groups))
    )
    reported = [row["lr"] for row in run(given)]
    expected = [learning_rate(given.config, epoch, 2, (step + 0.5) / 4) for epoch in (1, 2) for step in range(4)]
    assert [head for _, head in rates] == pytest.approx(expected)
    assert [body for body, _ in rates] == pytest.approx([rate / 2 for rate in expected])
    assert reported == [rates[3][1], rates[7][1]]


@pytest.mark.parametrize("schedule", ["cosine", {1: 1e-3, 2: 1e-4}], ids=["cosine", "staged"])
def test_the_head_alone_learns_at_the_full_rate(schedule: Any) -> None:
    given = trainer(body_lr_factor=0.1, schedule=schedule)
    body, last = given.optimizer.param_groups
    assert {id(parameter) for parameter in last["params"]} == {
        id(p) for p in head(given.sub_model.network).parameters()
    }
    assert len(body["params"]) + 2 == len(list(given.sub_model.parameters()))
    next(given.epochs(batches, lambda: batches(99), IMAGES))
    assert body["lr"] == pytest.approx(0.1 * last["lr"])


def test_what_is_validated_is_the_average_of_the_weights() -> None:
    given = trainer(max_epochs=3, ema_decay=0.9)
    trained = given.state_dict()["trained"]
    row = run(given)[-1]
    averages = given.sub_model.state_dict()
    assert not torch.allclose(averages["network.fc.weight"], trained["network.fc.weight"])
    alone = SubModel(build(BACKBONE, 32), 32, 32, 1, [0.3], [0.2]).eval()
    alone.load_state_dict(averages)
    images, labels = (torch.cat(parts) for parts in zip(*batches(99), strict=True))
    with torch.inference_mode():
        loss = F.binary_cross_entropy_with_logits(alone(images), labels, pos_weight=torch.tensor(3.0))
    assert row["val_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_the_device_is_what_ray_assigned_and_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(gpus_assigned=0.5).type == "cuda"
    assert choose_device(gpus_assigned=0).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(gpus_assigned=1).type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(gpus_assigned=0).type == "mps"


def test_a_batch_in_parts_takes_the_same_step() -> None:
    batches = [(torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8), (torch.arange(9) % 2).float())]
    losses, weights = [], []
    for parts in (1, 3):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))
        sub_model = SubModel(network, 16, 16, 1, [0.5], [0.2])
        config = Config(optimizer="sgd", lr=0.1, schedule="constant")
        trainer = Trainer(
            sub_model, config, pos_weight=2.0, max_epochs=1, device=torch.device("cpu"), seed=0, parts=parts
        )
        (metrics,) = trainer.epochs(lambda epoch: batches, lambda: batches, 9)
        losses.append(metrics["train_loss"])
        weights.append(network[1].weight.detach().clone())
    assert losses[0] == pytest.approx(losses[1])
    assert torch.allclose(*weights, atol=1e-6)


def test_memory_that_does_not_suffice_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(other.value)


def uneven(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches that two workers cannot share equally; the last one is too small for them, so one is given it joined."""
    sizes = zip(batches(1), (15, 16, 7, 3), strict=True)
    *first, seven, three = [(images[:size], labels[:size]) for (images, labels), size in sizes]
    joined = torch.cat([seven[0], three[0]]), torch.cat([seven[1], three[1]])
    return [*first, joined] if workers == 1 else [*first, seven, three]


def trained(workers: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """One epoch, of which batch norms see nothing: their body is frozen, and keeps its statistics."""
    given = trainer(max_epochs=1, workers=workers, unfreeze_epoch=2, optimizer="sgd")
    (row,) = given.epochs(lambda epoch: uneven(workers), lambda: batches(99), 41)
    return row, given.sub_model.state_dict()


def work(rank: int, folder: str) -> None:
    """One of two workers; each notes what it got."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(trained(workers=2), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_together_take_the_steps_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    row, weights = trained(workers=1)
    before = trainer(max_epochs=1, unfreeze_epoch=2, optimizer="sgd").sub_model.state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights.items())
    for rank in range(2):
        told, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, tensor in weights.items():
            assert torch.allclose(found[name], tensor, atol=1e-6), name
        assert told["train_loss"] == pytest.approx(row["train_loss"], abs=1e-5)
        for name in ("train_tn", "train_fp", "train_fn", "train_tp", "lr"):
            assert told[name] == row[name]


GIVEN_BACK = """
from pathlib import Path
import numpy as np
from ovr_ray.model import keep_pages

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_pages()
before = resident()
buffers = [np.ones(1 << 20, np.uint8) for _ in range(201)]
last = buffers.pop()  # what lies above the others keeps the heap from shrinking by itself
del buffers
kept = resident()
keep_pages()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_process_keeps_its_buffers_until_the_next_trial() -> None:
    """In a process of its own, as there is no way back."""
    told = subprocess.run([sys.executable, "-c", GIVEN_BACK], check=True, capture_output=True, text=True).stdout
    kept, left = map(int, told.split())
    assert kept > 200 << 20
    assert left < 20 << 20
