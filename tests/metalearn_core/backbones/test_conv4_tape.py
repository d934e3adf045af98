"""The derivatives that are written by hand are those that autograd finds."""

import pytest
import torch

from metalearn_core.backbones import make_backbone
from metalearn_core.data.manifest import DatasetSpec

SPEC = DatasetSpec(
    modality="image", example_shape=(2, 13, 13), dtype="uint8", mean=(0.5, 0.5), std=(0.2, 0.3), train_classes=4
)


GROUPS = 3


def problem(pooling, seed, blocks=3, width=5):
    generator = torch.Generator().manual_seed(seed)
    backbone = make_backbone("conv4", SPEC, {"width": width, "blocks": blocks, "pooling": pooling}).double()
    weights = {
        name: torch.randn(GROUPS, *value.shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, value in backbone.named_parameters()
    }
    x = torch.randn(GROUPS, 6, *SPEC.example_shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(backbone.feature_size, 3, generator=generator, dtype=torch.float64)
    direction = {name: torch.randn(v.shape, generator=generator, dtype=torch.float64) for name, v in weights.items()}
    return backbone, weights, x, mixing, direction


@pytest.mark.parametrize("pooling", ["stride", "max"])
@pytest.mark.parametrize(("seed", "blocks", "width"), [(0, 3, 5), (1, 3, 20), (2, 2, 5), (3, 1, 24)])
def test_features_gradient_and_its_derivative_are_those_of_autograd(pooling, seed, blocks, width):
    backbone, weights, x, mixing, direction = problem(pooling, seed, blocks, width)
    features, _ = backbone.embed(weights, x.requires_grad_())  # so that no batch norm is folded there
    x = x.detach()

    def loss(features):
        return (features @ mixing).square().sum() / 2

    gradients = torch.autograd.grad(loss(features), list(weights.values()), create_graph=True)
    inner = sum((g * direction[name]).sum() for name, g in zip(weights, gradients, strict=True))
    derivatives = torch.autograd.grad(inner, list(weights.values()))

    with torch.no_grad():
        tape = backbone.tapes(x)(weights, x.dtype)
        torch.testing.assert_close(tape.features, features)
        found = tape.backward(tape.features @ mixing @ mixing.T)
        tangent = tape.forward_tangent(direction)
        along = tape.backward_tangent(tangent @ mixing @ mixing.T, direction)
    for name, gradient, derivative in zip(weights, gradients, derivatives, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(along[name], derivative, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pooling", ["stride", "max"])
def test_the_tangent_of_the_features_is_the_limit_of_a_difference(pooling):
    backbone, weights, x, mixing, direction = problem(pooling, 3)
    with torch.no_grad():
        tape = backbone.tapes(x)(weights, x.dtype)
        tape.backward(tape.features @ mixing @ mixing.T)
        tangent = tape.forward_tangent(direction)
        ends = [
            backbone.tapes(x)(
                {name: value + sign * 1e-6 * direction[name] for name, value in weights.items()}, x.dtype
            ).features
            for sign in (1, -1)
        ]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["stride", "max"])
def test_examples_that_are_blank_leave_no_nan(pooling):
    backbone, weights, x, *_ = problem(pooling, 5)
    large = {name: 100 * value.float() for name, value in weights.items()}
    with torch.no_grad():
        tape = backbone.float().tapes(torch.zeros_like(x, dtype=torch.float32))(large, torch.float32)
        found = tape.backward(tape.features)
    assert tape.features.isfinite().all()
    assert all(value.isfinite().all() for value in found.values())
