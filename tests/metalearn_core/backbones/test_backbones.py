import pytest
import torch
from torch.nn import functional as F

from metalearn_core.backbones import make_backbone
from metalearn_core.backbones.contract import move_averages
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError

IMAGES = DatasetSpec(
    modality="image", example_shape=(2, 11, 11), dtype="uint8", mean=(0.5, 0.4), std=(0.3, 0.2), train_classes=7
)
VECTORS = DatasetSpec(
    modality="vector", example_shape=(6,), dtype="float32", mean=(0.0,) * 6, std=(1.0,) * 6, train_classes=7
)
CHOICES = [
    ("conv4", IMAGES, {"width": 4, "blocks": 3, "pooling": "max"}),
    ("conv4", IMAGES, {"width": 4, "pooling": "stride"}),
    ("conv4", IMAGES, {"width": 4, "pooling": "max", "halvings": 2}),
    ("conv4", IMAGES, {"width": 4, "pooling": "stride", "halvings": 1}),
    ("mlp", IMAGES, {"hidden": "5,4"}),
    ("mlp", VECTORS, {"hidden": [5, 4]}),
]


def make(name, spec, options):
    torch.manual_seed(1)
    backbone = make_backbone(name, spec, options).double()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return backbone


def examples(spec, groups, count):
    return torch.randn(groups, count, *spec.example_shape, dtype=torch.float64)


def plain_conv4(weights, x, pooling, halvings=12):
    """One group by torch's own layers, in the order of the paper: convolution, batch norm, ReLU, max-pool."""
    used = {}
    for block in range(sum(name.endswith("conv.weight") for name in weights)):
        name, halves = f"blocks.{block}", block < halvings
        x = F.conv2d(x, weights[f"{name}.conv.weight"], padding=1, stride=2 if halves and pooling == "stride" else 1)
        used[f"{name}.norm.mean"] = x.mean((0, 2, 3))
        used[f"{name}.norm.var"] = x.var((0, 2, 3), correction=0)
        x = F.relu(F.batch_norm(x, None, None, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"], True))
        x = F.max_pool2d(x, 2) if halves and pooling == "max" else x
    return x, used


@pytest.mark.parametrize("options", [options for name, _, options in CHOICES if name == "conv4"])
def test_conv4_is_the_papers_layers_one_after_the_other(options):
    backbone = make("conv4", IMAGES, options)
    weights = dict(backbone.named_parameters())
    x = examples(IMAGES, 3, 5)
    features, statistics = backbone.embed(weights, x)
    for group in range(3):
        maps, used = plain_conv4(weights, x[group], options["pooling"], options.get("halvings", 12))
        torch.testing.assert_close(features[group], maps.flatten(1))
        assert maps.shape[1:] == backbone.map_shape
        for name, value in used.items():
            torch.testing.assert_close(statistics[name][group], value)
    assert features.shape == (3, 5, backbone.feature_size)


@pytest.mark.parametrize(("name", "spec", "options"), CHOICES)
def test_groups_together_are_groups_one_by_one_with_shared_or_own_weights(name, spec, options):
    backbone = make(name, spec, options)
    x = examples(spec, 3, 4)
    shared = dict(backbone.named_parameters())
    own = {n: torch.stack([p + 0.1 * group for group in range(3)]) for n, p in shared.items()}
    for weights, of_group in (
        (shared, lambda _: shared),
        (own, lambda group: {n: p[group] for n, p in own.items()}),
    ):
        for run in (backbone.embed, lambda w, x: backbone.embed_groups(w, x, None)):
            features, statistics = run(weights, x)
            for group in range(3):
                expected, used = backbone.embed(of_group(group), x[group, None])
                torch.testing.assert_close(features[group, None], expected)
                for n, value in used.items():
                    torch.testing.assert_close(statistics[n][group, None], value)


def test_given_statistics_are_used_and_returned():
    backbone = make("conv4", IMAGES, {"width": 4, "pooling": "stride"})
    weights, x = dict(backbone.named_parameters()), examples(IMAGES, 2, 4)
    features, statistics = backbone.embed(weights, x)
    again, used = backbone.embed(weights, x, statistics)
    torch.testing.assert_close(again, features)
    torch.testing.assert_close(used, statistics)
    alone, _ = backbone.embed(weights, x[:, :1], statistics)
    torch.testing.assert_close(alone, features[:, :1])


@pytest.mark.parametrize(("name", "spec", "options"), CHOICES)
def test_what_is_masked_out_has_no_part_in_a_group_and_features_of_zero(name, spec, options):
    backbone = make(name, spec, options)
    weights = {n: torch.stack([p, p + 0.1]) for n, p in backbone.named_parameters()}
    x, mask = examples(spec, 2, 4), torch.tensor([[True, False, True, True], [False, True, True, False]])
    features, statistics = backbone.embed(weights, x, mask=mask)
    for group in range(2):
        own = {n: weight[group] for n, weight in weights.items()}
        expected, used = backbone.embed(own, x[group, mask[group]][None])
        torch.testing.assert_close(features[group, mask[group]], expected[0])
        assert features[group, ~mask[group]].abs().max() == 0
        for n, value in used.items():
            torch.testing.assert_close(statistics[n][group, None], value)


def test_running_statistics_follow_the_episodes_in_order():
    backbone = make("conv4", IMAGES, {"width": 4, "pooling": "stride"})
    _, statistics = backbone.embed(dict(backbone.named_parameters()), examples(IMAGES, 2, 4))
    assert set(statistics) == {name for name, _ in backbone.named_buffers()}
    move_averages(dict(backbone.named_buffers()), statistics)
    mean = statistics["blocks.0.norm.mean"]
    torch.testing.assert_close(backbone.running_statistics()["blocks.0.norm.mean"][0], 0.09 * mean[0] + 0.1 * mean[1])
    first, second = statistics["blocks.0.norm.var"]
    torch.testing.assert_close(
        backbone.running_statistics()["blocks.0.norm.var"][0], 0.81 + 0.09 * first + 0.1 * second
    )


def test_vectors_are_no_maps():
    assert make("mlp", IMAGES, {"hidden": "5,4"}).map_shape is None


def test_only_a_conv4_that_halves_in_every_block_has_a_tape():
    assert make("conv4", IMAGES, {"width": 4, "pooling": "stride"}).taped
    some = make("conv4", IMAGES, {"width": 4, "halvings": 2})
    assert (some.taped, some.remembered) == (False, 0)


def test_no_convolution_has_a_bias():
    names = [name for name, _ in make("conv4", IMAGES, {"width": 4, "pooling": "stride"}).named_parameters()]
    assert not [name for name in names if "conv.bias" in name]


@pytest.mark.parametrize(
    ("name", "spec", "options", "words"),
    [
        ("conv5", IMAGES, {}, ["conv5", "conv4"]),
        ("conv4", IMAGES, {"widht": 3}, ["widht", "'width'"]),
        ("conv4", IMAGES, {"width": "many"}, ["conv4.width", "many", "integer"]),
        ("conv4", IMAGES, {"width": 0}, ["conv4.width", "0", "greater than or equal to 1"]),
        ("conv4", IMAGES, {"pooling": "mean"}, ["conv4.pooling", "mean", "stride"]),
        ("conv4", IMAGES, {"pooling": "max"}, ["conv4.blocks", "11×11", "pooling=stride"]),
        ("conv4", VECTORS, {}, ["conv4", "image", "vector", "mlp"]),
        ("mlp", VECTORS, {"hidden": ""}, ["mlp.hidden"]),
        ("mlp", VECTORS, {"hidden": "3,x"}, ["mlp.hidden", "3,x"]),
    ],
)
def test_bad_options_are_named_in_one_line(name, spec, options, words):
    with pytest.raises(UsageError) as error:
        make_backbone(name, spec, options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
