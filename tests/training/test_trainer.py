from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn
from torch.profiler import ProfilerActivity, profile

from ovr_ray.model import Backbone, SubModel, build
from ovr_ray.recipe import Config
from ovr_ray.training import Diverged, Trainer, learning_rate
from tests.support import BACKBONE, EVERY_OPTION, IMAGES, Counting, batches

CPU = torch.device("cpu")
METRICS = {
    *("epoch", "train_loss", "val_loss", "val_f1", "threshold", "val_f1_at_half", "val_average_precision"),
    *("images_per_s", "lr"),
    *(f"{split}_{count}" for split in ("train", "val") for count in ("tn", "fp", "fn", "tp")),
}


def trainer(max_epochs: int = 4, pos_weight: float = 3.0, workers: int = 1, **config: Any) -> Trainer:
    torch.manual_seed(0)
    given = Config(**{"backbone": BACKBONE, "weights": None, "lr": 3e-3, "precision": "fp32"} | config)
    sub_model = SubModel(build(given.backbone, 32), 32, 32, 1, [0.3], [0.2])
    return Trainer(sub_model, given, pos_weight=pos_weight, max_epochs=max_epochs, device=CPU, seed=5, workers=workers)


def run(given: Trainer) -> list[dict[str, Any]]:
    """Train to the last epoch; return the rows of all epochs."""
    return list(given.epochs(batches, lambda: batches(99), IMAGES))


def test_it_learns_and_reports_every_metric_each_epoch() -> None:
    epochs = run(trainer(max_epochs=12))
    assert [row["epoch"] for row in epochs] == list(range(1, 13))
    assert set(epochs[0]) == METRICS
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2
    assert epochs[-1]["val_average_precision"] > 0.9
    assert sum(epochs[0][f"val_{count}"] for count in ("tn", "fp", "fn", "tp")) == 64


@pytest.mark.parametrize(("precision", "computed"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_it_trains_in_the_given_precision_but_weights_head_and_validation_are_float32(
    precision: str, computed: torch.dtype
) -> None:
    given = trainer(max_epochs=12, precision=precision)
    convolution = next(module for module in given.sub_model.modules() if isinstance(module, nn.Conv2d))
    seen, of_head = set(), set()
    convolution.register_forward_hook(lambda module, inputs, output: seen.add((module.training, output.dtype)))
    given.sub_model.head().register_forward_hook(lambda module, inputs, output: of_head.add(output.dtype))
    epochs = run(given)
    assert seen == {(True, computed), (False, torch.float32)}
    assert of_head == {torch.float32}
    assert {parameter.dtype for parameter in given.sub_model.parameters()} == {torch.float32}
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2


def test_tf32_is_allowed_only_for_the_trial_that_asks_for_it() -> None:
    """Trials follow each other in one process; validation allows it to none."""
    allowed = set()

    def note(module: nn.Module, *_: Any) -> None:
        of = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        allowed.add((given.precision, module.training, *of))

    for precision in ("tf32", "fp32"):
        given = trainer(max_epochs=1, precision=precision)
        given.sub_model.head().register_forward_hook(note)
        run(given)
    assert {found for found in allowed if found[2] or found[3]} == {("tf32", True, True, True)}
    assert len(allowed) == 4


@pytest.mark.parametrize(
    "config",
    [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, EVERY_OPTION],
    ids=["adam", "adamw", "sgd", "every option"],
)
def test_training_resumed_from_a_saved_state_is_as_if_never_interrupted(config: dict[str, Any]) -> None:
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
    training = trainer(backbone="mobilenet_v3_small")  # it has in-place ReLUs, which need no copy, and Hardswishs
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        next(training.epochs(batches, lambda: batches(99), IMAGES))
    operators = {event.key for event in profiler.key_averages()}
    assert {"aten::relu_", "aten::hardswish"} <= operators
    assert "aten::hardswish_" not in operators


def test_the_body_is_trained_from_the_unfreeze_epoch_on() -> None:
    given = trainer(unfreeze_epoch=3)
    first_layer = next(given.sub_model.network.parameters())
    values = [first_layer.detach().clone() for _ in given.epochs(batches, lambda: batches(99), IMAGES)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


def test_a_loss_that_is_not_finite_ends_training() -> None:
    with pytest.raises(Diverged, match="epoch 1"):
        run(trainer(lr=1e38, optimizer="sgd", schedule="constant"))


def test_sgd_without_momentum_trains() -> None:
    epochs = run(trainer(max_epochs=4, optimizer="sgd", momentum=0.0, lr=0.03))
    assert epochs[-1]["train_loss"] < 0.9 * epochs[0]["train_loss"]


@pytest.mark.parametrize(("momentum", "is_nesterov"), [(0.0, False), (0.5, True)])
def test_sgd_with_momentum_is_nesterovs(momentum: float, is_nesterov: bool) -> None:
    (group,) = trainer(optimizer="sgd", momentum=momentum).optimizer.param_groups
    assert (group["momentum"], group["nesterov"]) == (momentum, is_nesterov)


@pytest.mark.parametrize("wrong", [{"optimizer": "sophist"}, {"precision": "fp8"}], ids=["optimizer", "precision"])
def test_an_unknown_option_is_refused_when_a_trainer_is_made(wrong: dict[str, str]) -> None:
    config = Config.model_construct(**{"backbone": BACKBONE} | wrong)  # type: ignore[arg-type]
    sub_model = SubModel(build(BACKBONE, 32), 32, 32, 1, [0.3], [0.2])
    with pytest.raises(AssertionError, match="|".join(wrong.values())):
        Trainer(sub_model, config, pos_weight=1.0, max_epochs=1, device=CPU)


def test_an_unknown_schedule_is_refused_in_the_first_epoch() -> None:
    config = Config.model_construct(backbone=BACKBONE, schedule="linear")  # type: ignore[arg-type]
    sub_model = SubModel(build(BACKBONE, 32), 32, 32, 1, [0.3], [0.2])
    with pytest.raises(AssertionError, match="linear"):
        run(Trainer(sub_model, config, pos_weight=1.0, max_epochs=1, device=CPU))


def test_a_last_batch_of_one_image_is_trained_on_too() -> None:
    def with_one_left(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from batches(epoch)
        yield torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1)

    row = next(trainer().epochs(with_one_left, lambda: batches(99), IMAGES + 1))
    assert sum(row[f"train_{count}"] for count in ("tn", "fp", "fn", "tp")) == 65


def test_the_rate_is_set_at_every_step_and_that_of_the_last_step_is_reported() -> None:
    given = trainer(max_epochs=2, warmup_epochs=1, body_lr_factor=0.5)
    rates: list[tuple[float, float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        body, head = optimizer.param_groups
        rates.append((body["lr"], head["lr"]))

    given.optimizer.register_step_pre_hook(note)
    reported = [row["lr"] for row in run(given)]
    expected = [learning_rate(given.config, epoch, 2, (step + 0.5) / 4) for epoch in (1, 2) for step in range(4)]
    assert [head for _, head in rates] == pytest.approx(expected)
    assert [body for body, _ in rates] == pytest.approx([rate / 2 for rate in expected])
    assert reported == [rates[3][1], rates[7][1]]


@pytest.mark.parametrize("schedule", ["cosine", {1: 1e-3, 2: 1e-4}], ids=["cosine", "staged"])
def test_only_the_head_learns_at_the_full_rate(schedule: Any) -> None:
    given = trainer(body_lr_factor=0.1, schedule=schedule)
    body, last = given.optimizer.param_groups
    assert {id(p) for p in last["params"]} == {id(p) for p in given.sub_model.head().parameters()}
    assert len(body["params"]) + 2 == len(list(given.sub_model.parameters()))
    next(given.epochs(batches, lambda: batches(99), IMAGES))
    assert body["lr"] == pytest.approx(0.1 * last["lr"])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_checkpoint_of_a_fused_optimizer_goes_on_where_none_is_used(optimizer: str) -> None:
    before = trainer(max_epochs=3, optimizer=optimizer)
    epochs = before.epochs(batches, lambda: batches(99), IMAGES)
    next(epochs)
    state = copy.deepcopy(before.state_dict())
    weights = copy.deepcopy(before.sub_model.state_dict())
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True  # as on a GPU
    resumed = trainer(max_epochs=3, optimizer=optimizer)
    resumed.load_state_dict(state)
    resumed.sub_model.load_state_dict(weights)
    assert not any(group["fused"] for group in resumed.optimizer.param_groups)
    expected, (row, *_) = next(epochs), run(resumed)
    assert (row["epoch"], row["train_loss"]) == (2, pytest.approx(expected["train_loss"], abs=1e-6))


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


def test_a_step_asks_no_value_of_its_device_and_adds_few_operations_to_those_of_network_loss_and_optimizer() -> None:
    given = trainer(max_epochs=1, optimizer="sgd", ema_decay=0.9)  # Adam on CPUs looks at its own count of steps
    every, begins = list(batches(1)), []

    def marked(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in every:
            begins.append(len(counting.operations))
            yield batch

    with Counting() as counting:
        next(given.epochs(marked, lambda: batches(99), IMAGES))
    assert len(begins) > 3
    step = counting.operations[begins[2] : begins[3]]
    assert not [name for name in step if "_local_scalar_dense" in name]
    assert [
        name for name in counting.operations if "_local_scalar_dense" in name
    ]  # validation does, at the epoch's end
    bare, loss_of = trainer(max_epochs=1, optimizer="sgd"), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))
    images, labels = every[0]
    bare.sub_model.train()
    with Counting() as alone:
        bare.optimizer.zero_grad(set_to_none=True)
        loss_of(bare.sub_model(images), labels).backward()
        bare.optimizer.step()
    assert len(step) - len(alone.operations) <= 20


def test_a_batch_in_micro_batches_takes_the_same_step() -> None:
    batch = [(torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8), (torch.arange(9) % 2).float())]
    losses, weights = [], []
    for micro_batches in (1, 3):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))
        sub_model = SubModel(Backbone(network, head="1"), 16, 16, 1, [0.5], [0.2])
        config = Config(optimizer="sgd", lr=0.1, schedule="constant")
        before = network.state_dict()["1.weight"].clone()
        given = Trainer(sub_model, config, pos_weight=2.0, max_epochs=1, device=CPU, micro_batches=micro_batches)
        (row,) = given.epochs(lambda epoch: batch, lambda: batch, 9)
        losses.append(row["train_loss"])
        weights.append(network.state_dict()["1.weight"])
        assert not torch.allclose(weights[-1], before, atol=1e-4)
    assert losses[0] == pytest.approx(losses[1])
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def uneven(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches that two workers cannot share equally.

    The last one is too small for two workers, which join it to the one before; one worker is given them joined.
    """
    sizes = zip(batches(1), (15, 16, 7, 3), strict=True)
    *first, seven, three = [(images[:size], labels[:size]) for (images, labels), size in sizes]
    joined = torch.cat([seven[0], three[0]]), torch.cat([seven[1], three[1]])
    return [*first, joined] if workers == 1 else [*first, seven, three]


def trained(workers: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train one epoch in which batch norms make no difference: the body is frozen and keeps its statistics."""
    given = trainer(max_epochs=1, workers=workers, unfreeze_epoch=2, optimizer="sgd")
    (row,) = given.epochs(lambda epoch: uneven(workers), lambda: batches(99), 41)
    return row, given.sub_model.state_dict()


def work(rank: int, folder: str) -> None:
    """Train as one of two workers, and save the result."""
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
        reported, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, tensor in weights.items():
            assert torch.allclose(found[name], tensor, atol=1e-6), name
        assert reported["train_loss"] == pytest.approx(row["train_loss"], abs=1e-5)
        for name in ("train_tn", "train_fp", "train_fn", "train_tp", "lr"):
            assert reported[name] == row[name]
