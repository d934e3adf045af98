"""What every registered learner must do, whatever it is."""

from dataclasses import replace

import pytest
import torch

from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LEARNERS, LearnerSpec, make_learner
from metalearn_core.learners.contract import EmbeddingLearner, ExampleLearner

every_learner = pytest.mark.parametrize("name", sorted(LEARNERS))
order_blind = pytest.mark.parametrize(
    "name", [name for name, kind in sorted(LEARNERS.items()) if kind.info.order_invariant]
)
variable_shape = pytest.mark.parametrize(
    "name", [name for name, kind in sorted(LEARNERS.items()) if kind.info.variable_shape]
)
embedding_learners = [name for name, kind in sorted(LEARNERS.items()) if issubclass(kind, EmbeddingLearner)]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@every_learner
def test_logits_have_one_column_a_class_and_the_state_one_row_an_episode(make_double, make_episodes, name):
    learner, episodes = make_double(name).eval(), make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    assert all(isinstance(value, torch.Tensor) and len(value) == 3 for value in state.values())
    assert learner.predict(state, episodes.query_x).shape == (3, 12, 4)


@every_learner
@pytest.mark.parametrize("training", [False, True])
def test_episodes_in_a_batch_are_independent(make_double, make_episodes, name, training):
    learner, episodes = make_double(name).train(training), make_episodes()
    alone = torch.cat([learner(episodes[number : number + 1]) for number in range(3)])
    close(learner(episodes), alone)


@every_learner
def test_a_query_alone_gets_the_logits_that_it_gets_in_a_batch(make_double, make_episodes, name):
    learner, episodes = make_double(name).eval(), make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    close(learner.predict(state, episodes.query_x)[:, 2:3], learner.predict(state, episodes.query_x[:, 2:3]))


@every_learner
def test_the_order_of_the_support_set_matters_as_declared(make_double, make_episodes, name):
    learner, episodes = make_double(name).eval(), make_episodes()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    shuffled = replace(episodes, support_x=episodes.support_x[:, order], support_y=episodes.support_y[:, order])
    difference = (learner(episodes) - learner(shuffled)).abs().max()
    assert difference < 1e-7 if learner.info.order_invariant else difference > 1e-4


@order_blind
def test_renaming_the_classes_renames_the_columns(make_double, make_episodes, name):
    learner, episodes = make_double(name, randomise=False).eval(), make_episodes()
    renamed = torch.tensor([2, 0, 3, 1])
    close(learner(episodes), learner(replace(episodes, support_y=renamed[episodes.support_y]))[:, :, renamed])


@variable_shape
@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(make_double, make_episodes, name, training, batch_norm):
    learner, episodes = make_double(name).train(training), make_episodes()
    learner.batch_norm = batch_norm if learner.info.transductive else "inductive"
    padding = torch.full((3, 2, *episodes.query_x.shape[2:]), 9.0).double()
    label = torch.zeros(3, 2, dtype=torch.int64)
    padded = replace(
        episodes,
        support_x=torch.cat([episodes.support_x, padding], dim=1),
        support_y=torch.cat([episodes.support_y, label], dim=1),
        query_x=torch.cat([episodes.query_x, padding], dim=1),
        query_y=torch.cat([episodes.query_y, label], dim=1),
        support_mask=torch.arange(10).expand(3, -1) < 8,
        query_mask=torch.arange(14).expand(3, -1) < 12,
    )
    close(learner(padded)[:, :12], learner(episodes))
    close(learner.train_episodes(padded).losses, learner.train_episodes(episodes).losses)


@every_learner
def test_a_class_that_no_label_names_gets_minus_infinity(make_double, make_episodes, name):
    learner, episodes = make_double(name).eval(), make_episodes()
    logits = learner(replace(episodes, support_y=torch.where(episodes.support_y == 1, 2, episodes.support_y)))
    assert torch.isneginf(logits[:, :, 1]).all()
    assert torch.isfinite(logits[:, :, [0, 2, 3]]).all()


@variable_shape
def test_a_class_without_support_gets_minus_infinity_and_the_others_ignore_it(make_double, make_episodes, name):
    learner, episodes = make_double(name).eval(), make_episodes()
    support_mask = episodes.support_y != 1
    logits = learner(replace(episodes, support_mask=support_mask))
    assert torch.isneginf(logits[:, :, 1]).all()
    assert torch.isfinite(logits[:, :, [0, 2, 3]]).all()


@every_learner
def test_gradients_reach_every_parameter(make_double, make_episodes, name):
    learner = make_double(name).train()
    if isinstance(learner, ExampleLearner):
        loss = learner.train_examples(make_episodes().query_x[0], torch.arange(12) % 7).losses.sum()
    else:
        loss = learner.train_episodes(make_episodes()).losses.sum()
    for (parameter_name, _), gradient in zip(
        learner.named_parameters(), torch.autograd.grad(loss, list(learner.parameters())), strict=True
    ):
        assert gradient.abs().max() > 0, parameter_name


@every_learner
def test_a_copy_with_the_same_weights_gives_the_same_logits(make_double, make_episodes, name):
    learner, other, episodes = make_double(name).eval(), make_double(name, seed=9).eval(), make_episodes()
    other.load_state_dict(learner.state_dict())
    assert torch.equal(learner(episodes), other(episodes))


@every_learner
def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(make_double, name):
    before = torch.get_rng_state()
    one, same, other = (make_double(name, seed=seed, randomise=False) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    vectors = [torch.nn.utils.parameters_to_vector(learner.parameters()) for learner in (one, same, other)]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


@every_learner
def test_bytes_are_divided_by_255_before_they_are_standardised(make_double, make_episodes, name):
    learner, episodes = make_double(name).eval(), make_episodes()
    raw = {field: (getattr(episodes, field) * 150).to(torch.uint8) for field in ("support_x", "query_x")}
    scaled = {field: value.double() / 255 for field, value in raw.items()}
    close(learner(replace(episodes, **raw)), learner(replace(episodes, **scaled)))


@pytest.mark.parametrize("name", [name for name in sorted(LEARNERS) if "vector" in LEARNERS[name].info.modalities])
def test_feature_vectors_are_taken_with_a_multilayer_perceptron(make_episodes, two_shot, name):
    vectors = DatasetSpec(
        modality="vector", example_shape=(6,), dtype="float32", mean=(0.5,) * 6, std=(0.3,) * 6, train_classes=7
    )
    spec = LearnerSpec(learner=name, options=two_shot(name), backbone="mlp")
    learner = make_learner(spec, vectors, way=4, dtype=torch.float64).eval()
    assert learner(make_episodes(shape=(6,))).shape == (3, 12, 4)


@pytest.mark.parametrize("name", embedding_learners)
def test_features_computed_once_give_the_logits_of_adapt_and_predict(make_double, make_episodes, name):
    learner, episodes = make_double(name).eval(), make_episodes()
    support, query = (torch.stack([learner.embed(x) for x in xs]) for xs in (episodes.support_x, episodes.query_x))
    state = learner.adapt_features(support, episodes.support_y, way=4)
    close(learner.predict_features(state, query), learner(episodes))
