import pytest
import torch
from torch.nn import functional as F

from metalearn_core.backbones.functional import (
    convolve,
    convolve_normalised,
    fold_groups,
    fold_norm,
    linear,
    normalise,
    unfold_groups,
)

torch.manual_seed(0)


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_convolution_is_each_group_convolved_by_itself(own_weights, stride):
    x, weight = doubles(3, 4, 2, 7, 7), doubles(*((3,) if own_weights else ()), 5, 2, 3, 3)
    out = unfold_groups(convolve(fold_groups(x), weight, 3, stride), 3)
    for group in range(3):
        expected = F.conv2d(x[group], weight[group] if own_weights else weight, stride=stride, padding=1)
        torch.testing.assert_close(out[group], expected.flatten(1))


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_linear_is_each_group_mapped_by_itself(own_weights, groups):
    lead = (groups,) if own_weights else ()
    x, weight, bias = doubles(groups, 4, 6), doubles(*lead, 5, 6), doubles(*lead, 5)
    for group, out in enumerate(linear(x, weight, bias)):
        own = (weight[group], bias[group]) if own_weights else (weight, bias)
        torch.testing.assert_close(out, F.linear(x[group], *own))


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_normalises_each_group_by_its_own_statistics(groups):
    x, weight, bias = doubles(5, groups * 3, 4, 4), doubles(groups, 3), doubles(groups, 3)
    out, mean, variance = normalise(x, weight, bias, groups)
    expected = F.batch_norm(x, None, None, weight.flatten(), bias.flatten(), training=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(mean.flatten(), x.mean((0, 2, 3)))
    torch.testing.assert_close(variance.flatten(), x.var((0, 2, 3), correction=0))


def test_batch_norm_and_its_statistics_are_differentiable_twice():
    x, weight, bias = doubles(3, 2, 2, 2), doubles(2), doubles(2)

    def outputs(x, weight, bias):
        return normalise(x, weight, bias, 1)

    assert torch.autograd.gradcheck(outputs, (x, weight, bias))
    assert torch.autograd.gradgradcheck(outputs, (x, weight, bias))


@pytest.mark.parametrize("own_statistics", [False, True])
@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_folded_batch_norm_is_a_convolution_and_then_a_batch_norm_by_given_statistics(
    groups, own_weights, own_statistics
):
    own = (groups,) if own_weights else ()
    x, convolution = doubles(groups, 4, 2, 5, 5), doubles(*own, 3, 2, 3, 3)
    weight, bias = doubles(*own, 3, seed=1), doubles(*own, 3, seed=2)
    mean = doubles(groups if own_statistics else 1, 3, seed=3)
    var = doubles(groups if own_statistics else 1, 3, seed=4).detach().exp()
    folded, shift = fold_norm(convolution, weight, bias, mean, var)
    out = unfold_groups(convolve(fold_groups(x), folded, groups, 2, shift), groups)

    def of(value, number, own):
        return value[number if own and len(value) > 1 else 0] if own else value

    for number in range(groups):
        plain = F.conv2d(x[number], of(convolution, number, own_weights), stride=2, padding=1)
        statistics = (value.expand(groups, -1)[number].detach() for value in (mean, var))
        scale, offset = of(weight, number, own_weights), of(bias, number, own_weights)
        expected = F.batch_norm(plain, *statistics, scale, offset, training=False)
        torch.testing.assert_close(out[number], expected.flatten(1))


def test_gradients_go_through_a_folded_batch_norm_and_its_statistics_twice():
    inputs = doubles(2, 2, 3, 3), doubles(2, seed=1), doubles(2, seed=2), doubles(1, 2, seed=3)
    var = doubles(1, 2, seed=4).detach().exp().requires_grad_()
    assert torch.autograd.gradcheck(fold_norm, (*inputs, var))
    assert torch.autograd.gradgradcheck(fold_norm, (*inputs, var))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_normalised_convolution_is_a_convolution_and_then_a_batch_norm(groups, own_weights, stride, channels):
    own = (groups,) if own_weights else ()
    x = fold_groups(doubles(groups, 4, channels, 7, 7).detach())
    values = doubles(*own, 5, channels, 3, 3, seed=1), doubles(*own, 5, seed=2), doubles(*own, 5, seed=3)
    out = convolve_normalised(x, *values, groups, stride)
    expected = normalise(convolve(x, values[0], groups, stride), *values[1:], groups)
    torch.testing.assert_close(out, expected)
    weights = [torch.randn_like(value) for value in out]
    got, wanted = (
        torch.autograd.grad(sum((w * value).sum() for w, value in zip(weights, each, strict=True)), values)
        for each in (out, expected)
    )
    torch.testing.assert_close(got, wanted)


def test_a_normalised_convolution_keeps_its_figures_for_examples_far_from_zero():
    x = (doubles(1, 40, 1, 7, 7) * 0.01 + 100).detach()
    values = doubles(5, 1, 3, 3, seed=1), doubles(5, seed=2), doubles(5, seed=3)
    exact = convolve_normalised(fold_groups(x), *values, 1, 2)
    single = convolve_normalised(fold_groups(x.float()), *(value.float() for value in values), 1, 2)
    by_parts = normalise(convolve(fold_groups(x.float()), values[0].float(), 1, 2), *(v.float() for v in values[1:]), 1)
    error, usual = ((found[0].double() - exact[0]).abs().max() for found in (single, by_parts))
    assert error < 4 * usual
