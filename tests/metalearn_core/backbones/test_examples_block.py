"""The first block, folded into one product, is a convolution and a batch norm; so are its derivatives."""

import pytest
import torch

from metalearn_core.backbones.examples_block import BlockValues, ExamplePatches, ExamplesBlock

GROUPS, ROWS, CHANNELS = 3, 40, 12


def problem(taps, seed, offset=0.0):
    """Patches, weights and what they move along, and a linear loss with its own tangent; in fp64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(GROUPS, *shape, generator=generator, dtype=torch.float64)

    patches = offset + draw(ROWS, taps)
    weights, along = (BlockValues(draw(CHANNELS, taps), draw(1, CHANNELS), draw(1, CHANNELS)) for _ in range(2))
    return patches, weights, along, draw(ROWS, CHANNELS)


def textbook(patches, weight, scale, shift):
    z = patches @ weight.mT
    variance, mean = torch.var_mean(z, dim=1, correction=0, keepdim=True)
    return scale * (z - mean) / (variance + 1e-5).sqrt() + shift


def loss(out, mixing):
    return (out * mixing).sum() + out.square().sum() / 2


def parts(values):
    return values.weight, values.scale, values.shift


@pytest.mark.parametrize("taps", [4, 9, 12, 30])  # of fewer and of more numbers than there are channels
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_convolution_and_batch_norm_and_so_are_its_gradient_and_that_ones_derivative(taps, seed):
    patches, weights, along, mixing = problem(taps, seed)
    moving = [value.requires_grad_() for value in parts(weights)]
    out = textbook(patches, *moving)
    gradient = torch.autograd.grad(loss(out, mixing), moving, create_graph=True)
    inner = sum((g * direction).sum() for g, direction in zip(gradient, parts(along), strict=True))
    derivative = torch.autograd.grad(inner, moving)
    with torch.no_grad():
        block = ExamplesBlock(ExamplePatches.of(patches), weights)
        found = block.forward()
        torch.testing.assert_close(found, out.detach(), rtol=1e-10, atol=1e-10)
        for own, wanted in zip(parts(block.backward(found + mixing)), gradient, strict=True):
            torch.testing.assert_close(own, wanted.detach(), rtol=1e-9, atol=1e-9)
        tangent = block.forward_tangent(along)
        _, wanted_tangent = torch.autograd.functional.jvp(
            lambda *values: textbook(patches, *values), parts(weights), parts(along)
        )
        torch.testing.assert_close(tangent, wanted_tangent, rtol=1e-9, atol=1e-9)
        for own, wanted in zip(parts(block.backward_tangent(tangent)), derivative, strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-8, atol=1e-8)


def test_patches_far_from_zero_and_almost_alike_are_normalised_in_fp32():
    patches, weights, _, _ = problem(9, 2, offset=300.0)
    rough = ExamplesBlock(ExamplePatches.of(patches.float()), BlockValues(*(v.float() for v in parts(weights))))
    torch.testing.assert_close(rough.forward().double(), textbook(patches, *parts(weights)), rtol=1e-2, atol=1e-2)


def test_a_variance_that_is_nothing_but_rounding_leaves_no_nan():
    generator = torch.Generator().manual_seed(3)
    single = torch.randn(200, ROWS, 1, generator=generator)
    patches = torch.cat([single, 3 * single], dim=2)  # the weights cancel what the two have in common: all of it
    weight = torch.tensor([3000.0, -1000.0]).expand(200, 1, 2)
    ones = torch.ones(200, 1, 1)
    weights, found = BlockValues(weight, ones, ones), ExamplePatches.of(patches)
    assert ((weight @ found.covariance) * weight).sum(2).min() < -1e-5, "rounding is not below zero here"
    block = ExamplesBlock(found, weights)
    out = block.forward()
    moved = (block.backward(out), block.forward_tangent(weights), block.backward_tangent(out))
    assert out.isfinite().all()
    assert all(value.isfinite().all() for one in moved for value in ([one] if torch.is_tensor(one) else parts(one)))
