import itertools

import pytest
import torch
from torch import nn

from metalearn_core.backbones import make_backbone
from metalearn_core.backbones.contract import move_averages
from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, make_learner

IMAGES = DatasetSpec(
    modality="image", example_shape=(3, 19, 19), dtype="uint8", mean=(0.5,) * 3, std=(0.3,) * 3, train_classes=7
)
WIDTHS = (4, 6, 5, 7)


class Block(nn.Module):
    """A block as the papers' code has it, of torch's own layers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(size, outputs, 3, padding=1, bias=False) for size in (inputs, outputs, outputs)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(3))
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.relu, self.pool = nn.LeakyReLU(0.1), nn.MaxPool2d(2)

    def forward(self, x):
        out = self.relu(self.norms[0](self.convolutions[0](x)))
        out = self.relu(self.norms[1](self.convolutions[1](out)))
        out = self.norms[2](self.convolutions[2](out))
        return self.pool(self.relu(out + self.downsample(x)))


class ResNet12(nn.Module):
    def __init__(self, channels, widths):
        super().__init__()
        sizes = (channels, *widths)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in itertools.pairwise(sizes)))

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)


def make(channels=3):
    torch.manual_seed(2)
    spec = IMAGES.model_copy(update={"example_shape": (channels, 19, 19)})
    backbone = make_backbone("resnet12", spec, {"widths": "4,6,5,7"}).double()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.5)
    return backbone


def oracle_of(backbone, weights):
    """Return torch's own network with these weights."""
    oracle = ResNet12(backbone.spec.example_shape[0], WIDTHS).double()
    with torch.no_grad():
        for number, block in enumerate(oracle.blocks):
            pairs = [(f"layers.{n}", block.convolutions[n], block.norms[n]) for n in range(3)]
            for name, convolution, norm in [*pairs, ("shortcut", *block.downsample)]:
                convolution.weight.copy_(weights[f"blocks.{number}.{name}.conv.weight"])
                norm.weight.copy_(weights[f"blocks.{number}.{name}.norm.weight"])
                norm.bias.copy_(weights[f"blocks.{number}.{name}.norm.bias"])
    return oracle


@pytest.mark.parametrize("channels", [1, 3])
def test_each_group_gets_what_torchs_own_layers_give_with_its_weights(channels):
    backbone = make(channels)
    x = torch.randn(3, 5, channels, 19, 19, dtype=torch.float64)
    shared = dict(backbone.named_parameters())
    own = {n: torch.stack([p * (1 + 0.2 * group) for group in range(3)]) for n, p in shared.items()}
    for weights, of_group in ((shared, lambda _: shared), (own, lambda g: {n: p[g] for n, p in own.items()})):
        for run in (backbone.embed, lambda w, x: backbone.embed_groups(w, x, None)):
            features, statistics = run(weights, x)
            assert set(statistics) == {name for name, _ in backbone.named_buffers()}
            assert features.shape == (3, 5, 7)
            for group in range(3):
                expected = oracle_of(backbone, of_group(group)).train()(x[group])
                torch.testing.assert_close(features[group], expected)


def test_gradients_are_those_of_torchs_own_layers():
    backbone = make()
    x = torch.randn(1, 6, 3, 19, 19, dtype=torch.float64)
    weights, target = dict(backbone.named_parameters()), torch.randn(6, 7, dtype=torch.float64)
    oracle = oracle_of(backbone, weights).train()
    features, _ = backbone.embed(weights, x)
    found = torch.autograd.grad((features[0] * target).sum(), [weights["blocks.0.layers.0.conv.weight"],
                                                              weights["blocks.2.shortcut.norm.weight"]])  # fmt: skip
    block, later = oracle.blocks[0], oracle.blocks[2]
    expected = torch.autograd.grad(
        (oracle(x[0]) * target).sum(), [block.convolutions[0].weight, later.downsample[1].weight]
    )
    torch.testing.assert_close(found, expected)


def test_running_statistics_make_a_query_independent_of_the_others():
    backbone = make()
    weights, x = dict(backbone.named_parameters()), torch.randn(2, 6, 3, 19, 19, dtype=torch.float64)
    _, statistics = backbone.embed(weights, x)
    move_averages(dict(backbone.named_buffers()), statistics)
    running = backbone.running_statistics()
    oracle = oracle_of(backbone, weights).eval()
    for number, block in enumerate(oracle.blocks):
        pairs = [(f"layers.{n}", block.norms[n]) for n in range(3)]
        for name, norm in [*pairs, ("shortcut", block.downsample[1])]:
            norm.running_mean.copy_(running[f"blocks.{number}.{name}.norm.mean"][0])
            norm.running_var.copy_(running[f"blocks.{number}.{name}.norm.var"][0])
    features, _ = backbone.embed(weights, x, running)
    torch.testing.assert_close(features[1], oracle(x[1]))
    torch.testing.assert_close(backbone.embed(weights, x[:, 2:3], running)[0], features[:, 2:3])


@pytest.mark.parametrize("name", ["protonet", "maml", "transfer"])
def test_learners_learn_through_it(name):
    spec = LearnerSpec(learner=name, backbone="resnet12", backbone_options={"widths": (4, 4, 4, 4)})
    learner = make_learner(spec, IMAGES, way=3, seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 6, 3, 19, 19, generator=generator, dtype=torch.float64)
    y = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    if name == "transfer":
        loss = learner.train_examples(x.flatten(0, 1), y.flatten()).losses.sum()
    else:
        loss = learner.train_episodes(EpisodeBatch(3, x, y, x.flip(1), y.flip(1))).losses.sum()
    gradients = torch.autograd.grad(loss, list(learner.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_too_small_an_image_is_refused():
    small = IMAGES.model_copy(update={"example_shape": (3, 15, 20)})
    with pytest.raises(UsageError, match="4 max-pools leave nothing of an image of 15×20 pixels"):
        make_backbone("resnet12", small, {})
    with pytest.raises(UsageError, match=r"resnet12.widths"):
        make_backbone("resnet12", IMAGES, {"widths": "64,128"})
