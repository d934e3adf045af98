"""The derivatives that are written by hand are those that autograd finds."""

import pytest
import torch

from metalearn_core.backbones import make_backbone
from metalearn_core.data.manifest import DatasetSpec

SPEC = DatasetSpec(
    modality="image", example_shape=(2, 13, 13), dtype="uint8", mean=(0.5, 0.5), std=(0.2, 0.3), train_classes=4
)


GROUPS = 3


def problem(pooling, seed):
    generator = torch.Generator().manual_seed(seed)
    backbone = make_backbone("conv4", SPEC, {"width": 5, "blocks": 3, "pooling": pooling}).double()
    weights = {
        name: torch.randn(GROUPS, *value.shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, value in backbone.named_parameters()
    }
    x = torch.randn(GROUPS, 6, *SPEC.example_shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(backbone.feature_size, 3, generator=generator, dtype=torch.float64)
    direction = {name: torch.randn(v.shape, generator=generator, dtype=torch.float64) for name, v in weights.items()}
    return backbone, weights, x, mixing, direction


@pytest.mark.parametrize("pooling", ["stride", "max"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_features_gradient_and_its_derivative_are_those_of_autograd(pooling, seed):
    backbone, weights, x, mixing, direction = problem(pooling, seed)
    features, _ = backbone.embed(weights, x)

    def loss(features):
        return (features @ mixing).square().sum() / 2

    gradients = torch.autograd.grad(loss(features), list(weights.values()), create_graph=True)
    inner = sum((g * direction[name]).sum() for name, g in zip(weights, gradients, strict=True))
    derivatives = torch.autograd.grad(inner, list(weights.values()))

    with torch.no_grad():
        tape = backbone.tape(weights, x, x.dtype)
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
        tape = backbone.tape(weights, x, x.dtype)
        tape.backward(tape.features @ mixing @ mixing.T)
        tangent = tape.forward_tangent(direction)
        ends = [
            backbone.tape(
                {name: value + sign * 1e-6 * direction[name] for name, value in weights.items()}, x, x.dtype
            ).features
            for sign in (1, -1)
        ]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)
