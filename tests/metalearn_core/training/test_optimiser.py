"""The outer optimiser is AdamW, as torch has it."""

import subprocess
import sys

import pytest
import torch

from metalearn_core.training.optimiser import OPTIMISERS, AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torch(weight_decay):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (5,), ()]
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    ours, theirs = ([value.clone().requires_grad_() for value in start] for _ in range(2))
    optimiser, reference = AdamW(ours, weight_decay), torch.optim.AdamW(theirs, weight_decay=weight_decay)
    for number in range(20):
        rate = 0.1 / (1 + number)
        gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        optimiser.step(gradients, rate)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        reference.param_groups[0]["lr"] = rate
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_training_does_not_load_torchs_compiler():
    script = "import sys, torch, metalearn_core.training.loop; assert 'torch._dynamo' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_sgd_is_torchs_with_decoupled_weight_decay():
    ours, theirs = (torch.arange(6, dtype=torch.float64).view(2, 3) for _ in range(2))
    optimiser = OPTIMISERS["sgd"]([ours], weight_decay=0.1)
    for step in range(3):
        gradient = torch.full_like(ours, step - 0.5)
        optimiser.step([gradient], 0.3)
        theirs = theirs * (1 - 0.3 * 0.1) - 0.3 * gradient
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert optimiser.slots == {}
