from __future__ import annotations

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from ovr_ray.model.loss import cross_entropy, training_loss

LOGITS = torch.tensor([2.0, -1.0, 0.5, -3.0])
LABELS = torch.tensor([1.0, 1.0, 0.0, 0.0])
ONE, THREE = torch.tensor(1.0), torch.tensor(3.0)


def test_the_positive_weight_scales_what_positives_cost() -> None:
    logits, labels = torch.zeros(4), torch.tensor([1.0, 0, 0, 0])
    assert cross_entropy(logits, labels, THREE) / cross_entropy(logits, labels, ONE) == pytest.approx(6 / 4)


def test_with_no_option_training_minimises_what_is_reported() -> None:
    assert torch.equal(training_loss(LOGITS, LABELS, THREE), cross_entropy(LOGITS, LABELS, THREE))


def test_options_close_to_none_are_close_to_none() -> None:
    near = training_loss(LOGITS, LABELS, THREE, smoothing=1e-7, gamma=1e-7)
    assert near == pytest.approx(cross_entropy(LOGITS, LABELS, THREE).item(), rel=1e-5)


def test_the_focus_is_that_of_the_focal_loss_beside_the_positive_weight() -> None:
    theirs = sigmoid_focal_loss(LOGITS, LABELS, alpha=-1, gamma=2)
    assert torch.allclose(training_loss(LOGITS, LABELS, ONE, gamma=2), theirs.mean())
    weighted = (theirs * torch.tensor([3.0, 3.0, 1.0, 1.0])).mean()
    assert torch.allclose(training_loss(LOGITS, LABELS, THREE, gamma=2), weighted)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_images_that_are_told_for_sure_have_a_gradient_that_is_a_number(gamma: float) -> None:
    logits = torch.tensor([40.0, -40.0, -40.0], requires_grad=True)
    training_loss(logits, torch.tensor([1.0, 0.0, 1.0]), THREE, gamma=gamma).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[2] < -0.9  # the one that is told wrongly


@pytest.mark.parametrize("pos_weight", [1.0, 20.0])
def test_smoothed_labels_are_what_the_best_logits_answer_whatever_the_positive_weight(pos_weight: float) -> None:
    labels = torch.tensor([1.0, 0.0])
    best = torch.logit(torch.tensor([0.95, 0.05])).requires_grad_()
    training_loss(best, labels, torch.tensor(pos_weight), smoothing=0.1).backward()
    assert best.grad is not None
    assert torch.allclose(best.grad, torch.zeros(2), atol=1e-6)
