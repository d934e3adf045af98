import pytest
import torch
from torch.nn import functional as F

from metalearn_core.backbones.functional import convolve, fold_groups, linear, normalise, unfold_groups

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
    out, mean, variance = normalise(x, weight, bias, None, groups)
    expected = F.batch_norm(x, None, None, weight.flatten(), bias.flatten(), training=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(mean.flatten(), x.mean((0, 2, 3)))
    torch.testing.assert_close(variance.flatten(), x.var((0, 2, 3), correction=0))


def test_batch_norm_and_its_statistics_are_differentiable_twice():
    x, weight, bias = doubles(3, 2, 2, 2), doubles(2), doubles(2)

    def outputs(x, weight, bias):
        return normalise(x, weight, bias, None, 1)

    assert torch.autograd.gradcheck(outputs, (x, weight, bias))
    assert torch.autograd.gradgradcheck(outputs, (x, weight, bias))


def test_batch_norm_by_given_statistics_lets_gradients_through_them():
    x, weight, bias, mean = doubles(3, 2, 2, 2), doubles(2), doubles(2), doubles(1, 2)
    variance = doubles(1, 2).detach().exp().requires_grad_()

    def outputs(x, weight, bias, mean, variance):
        return normalise(x, weight, bias, (mean, variance), 1)[0]

    assert torch.autograd.gradcheck(outputs, (x, weight, bias, mean, variance))
    assert torch.autograd.gradgradcheck(outputs, (x, weight, bias, mean, variance))
    expected = F.batch_norm(x, mean[0].detach(), variance[0].detach(), weight, bias, training=False)
    torch.testing.assert_close(outputs(x, weight, bias, mean, variance), expected)
