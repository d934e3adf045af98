"""The derivatives of the inner losses are those that autograd finds of the losses."""

import pytest
import torch
from torch.nn import functional as F

from metalearn_core.learners.optimization.support_loss import support_loss


def cross_entropy(outputs, y, present):
    seen = outputs.masked_fill(~present.unsqueeze(1), -torch.inf)
    return sum(F.cross_entropy(one, labels) for one, labels in zip(seen, y, strict=True))


def squared_error(outputs, y, _):
    return sum(F.mse_loss(one, targets) for one, targets in zip(outputs, y, strict=True))


def problem(kind):
    generator = torch.Generator().manual_seed(0)
    outputs, direction = (torch.randn(2, 7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, 2, (2, 7), generator=generator)
    targets = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    y, loss = (labels, cross_entropy) if kind == "class" else (targets, squared_error)
    return outputs.requires_grad_(), direction, y, torch.tensor([[True, True, False]] * 2), loss


@pytest.mark.parametrize("kind", ["class", "real"])
def test_gradient_and_tangent_are_the_first_and_second_derivative(kind):
    outputs, direction, y, present, loss = problem(kind)
    (gradient,) = torch.autograd.grad(loss(outputs, y, present), outputs, create_graph=True)
    (tangent,) = torch.autograd.grad((gradient * direction).sum(), outputs)
    found = support_loss(y, present)
    torch.testing.assert_close(found.gradient(outputs), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.tangent(outputs, direction), tangent, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["class", "real"])
def test_a_mini_batch_has_a_mean_of_its_own(kind):
    outputs, _, y, present, loss = problem(kind)
    rows = torch.tensor([5, 1])
    (gradient,) = torch.autograd.grad(loss(outputs[:, rows], y[:, rows], present), outputs)
    found = support_loss(y, present).of(rows).gradient(outputs[:, rows])
    torch.testing.assert_close(found, gradient[:, rows], rtol=1e-12, atol=1e-14)
