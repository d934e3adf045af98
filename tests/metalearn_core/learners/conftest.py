import pytest
import torch

from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner

IMAGES = DatasetSpec(
    modality="image", example_shape=(1, 8, 8), dtype="float32", mean=(0.4,), std=(0.3,), train_classes=7
)


TWO_SHOT = {"snail": {"shot": 2}}
SMALL = {"reptile": {"inner_batch": 3, "inner_lr": 0.01}, **TWO_SHOT}


@pytest.fixture
def two_shot():
    """Return a function that gives a learner's options, by its name, for the episodes of `make_episodes`."""
    return lambda name: TWO_SHOT.get(name, {})


@pytest.fixture
def images():
    return IMAGES


@pytest.fixture
def make_episodes():
    """Return a function that draws b random episodes in fp64: classes differ in their mean, the support is shuffled."""

    def make(b=3, way=4, shot=2, query=3, seed=0, shape=IMAGES.example_shape):
        generator = torch.Generator().manual_seed(seed)
        centres = torch.rand(b, way, 1, *shape, generator=generator, dtype=torch.float64)
        x = centres + 0.3 * torch.rand(b, way, shot + query, *shape, generator=generator, dtype=torch.float64)
        y = torch.arange(way).view(1, way, 1).expand(b, way, shot + query)
        order = torch.randperm(way * shot, generator=generator)
        return EpisodeBatch(
            way=way,
            support_x=x[:, :, :shot].flatten(1, 2)[:, order],
            support_y=y[:, :, :shot].flatten(1)[:, order],
            query_x=x[:, :, shot:].flatten(1, 2),
            query_y=y[:, :, shot:].flatten(1),
        )

    return make


@pytest.fixture
def make_double():
    """Return a function that makes a small learner in fp64 with random weights and running statistics everywhere."""

    def make(name, seed=0, way=4, randomise=True, **options):
        options = {**SMALL.get(name, {}), **options}
        spec = LearnerSpec(learner=name, options=options, backbone_options={"width": 5, "blocks": 3})
        learner = make_learner(spec, IMAGES, way=way, seed=seed, dtype=torch.float64)
        if randomise:
            generator = torch.Generator().manual_seed(seed + 100)
            for parameter in learner.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.add_(0.2 * noise)
            for buffer in learner.backbone.buffers():
                buffer.add_(0.3 * torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
        return learner

    return make


@pytest.fixture
def gradients_both_ways(monkeypatch):
    """Return a function that gives a learner's outer gradients by its backbone's tape, and by autograd alone."""

    def both(learner, episodes):
        found, taped_examples, tapes = [], [], learner.backbone.tapes
        monkeypatch.setattr(learner.backbone, "tapes", lambda x: taped_examples.append(x) or tapes(x))
        for taped in (True, False):
            monkeypatch.setattr(learner.backbone, "taped", taped)
            losses = learner.train_episodes(episodes).losses
            found.append(torch.autograd.grad(losses.sum(), list(learner.parameters())))
            assert bool(taped_examples) == taped
            taped_examples.clear()
        return found

    return both
