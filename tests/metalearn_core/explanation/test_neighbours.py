import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from metalearn_core.explanation.neighbours import Neighbours, compared, nearest_support


def nearest(learner, state, support_x, query_x, count) -> Neighbours:
    return nearest_support(state, *(compared(learner, state, x) for x in (support_x, query_x)), count)


def adapted(learner, support):
    x, y = support[0][:1], support[1][:1]
    with torch.no_grad():
        return learner.adapt(x, y, way=3), x[0]


def test_protonets_neighbours_are_those_that_scikit_learn_finds_among_its_features(make_double, support, query):
    learner = make_double("protonet")
    state, x = adapted(learner, support)
    near = nearest(learner, state, x, query, 4)
    with torch.no_grad():
        features, queries = learner.embed(x).numpy(), learner.embed(query).numpy()
    distances, places = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(features).kneighbors(queries)
    np.testing.assert_array_equal(near.nearest, places)
    np.testing.assert_allclose(near.distances, distances, rtol=1e-9)


def test_prototype_distances_are_those_to_the_class_means(make_double, support, query):
    learner = make_double("protonet")
    state, x = adapted(learner, support)
    near = nearest(learner, state, x, query, 1)
    with torch.no_grad():
        features, queries = learner.embed(x).numpy(), learner.embed(query).numpy()
    means = np.stack([features[[0, 3]].mean(0), features[[1, 4]].mean(0), features[[2, 5]].mean(0)])
    np.testing.assert_allclose(near.prototype_distances, pairwise_distances(queries, means), rtol=1e-9)
    with torch.no_grad():
        logits = learner.predict(state, query[None])[0].numpy()
    np.testing.assert_allclose(near.prototype_distances**2, -logits, rtol=1e-7, atol=1e-9)


def test_a_gradient_learners_neighbours_are_near_under_its_fast_weights(make_double, support, query):
    learner = make_double("maml", eval_steps=3)
    state, x = adapted(learner, support)
    near = nearest(learner, state, x, query, 3)
    hidden = torch.cat([x, query]).sub(0.5).div(0.3)
    for number in range(2):  # the block by itself: convolution of stride 2, the support set's statistics, ReLU
        weight, scale, shift = (
            state[f"backbone.blocks.{number}.{name}"][0] for name in ("conv.weight", "norm.weight", "norm.bias")
        )
        hidden = F.conv2d(hidden, weight, stride=2, padding=1)
        mean, variance = hidden[: len(x)].mean((0, 2, 3)), hidden[: len(x)].var((0, 2, 3), unbiased=False)
        hidden = F.relu(F.batch_norm(hidden, mean, variance, scale, shift))
    features = hidden.flatten(1).detach().numpy()
    finder = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(features[: len(x)])
    distances, places = finder.kneighbors(features[len(x) :])
    np.testing.assert_array_equal(near.nearest, places)
    np.testing.assert_allclose(near.distances, distances, rtol=1e-6)
    assert near.prototype_distances is None


def test_transfers_neighbours_are_those_by_cosine(make_double, support, query):
    learner = make_double("transfer")
    state, x = adapted(learner, support)
    near = nearest(learner, state, x, query, 3)
    with torch.no_grad():
        features, queries = learner.embed(x).numpy(), learner.embed(query).numpy()
    finder = NearestNeighbors(n_neighbors=3, algorithm="brute", metric="cosine").fit(features)
    cosine, places = finder.kneighbors(queries)
    np.testing.assert_array_equal(near.nearest, places)
    np.testing.assert_allclose(near.distances**2 / 2, cosine, atol=1e-9)


def test_centroids_prototypes_are_as_far_as_its_logits_say(make_double, support, query):
    for distance in ("euclidean", "cosine"):
        learner = make_double("centroid", distance=distance, scale=1.0)
        state, x = adapted(learner, support)
        squares = nearest(learner, state, x, query, 1).prototype_distances ** 2
        with torch.no_grad():
            logits = learner.predict(state, query[None])[0].numpy()
        expected = -logits if distance == "euclidean" else 2 - 2 * logits
        np.testing.assert_allclose(squares, expected, rtol=1e-6, atol=1e-9)


def test_of_equally_near_examples_the_first_comes_first(make_double, support, query):
    learner = make_double("protonet")
    x = support[0][:1, [0, 0, 1, 0]]
    with torch.no_grad():
        state = learner.adapt(x, torch.tensor([[0, 0, 1, 0]]), way=3)
    near = nearest(learner, state, x[0], x[0][:1], 4)
    assert near.nearest.tolist() == [[0, 1, 3, 2]]
    assert near.distances[0, :3].tolist() == [0, 0, 0]


def test_every_learner_finds_a_support_example_nearest_to_itself(any_learner, support):
    state, x = adapted(any_learner, support)
    near = nearest(any_learner, state, x, x, 10)
    assert near.nearest.shape == (6, 6)
    assert near.nearest[:, 0].tolist() == list(range(6))
    np.testing.assert_allclose(near.distances[:, 0], 0, atol=1e-9)
    assert (np.diff(near.distances) >= 0).all()


@pytest.mark.parametrize("alone", [0, 4])
def test_a_query_alone_has_the_same_neighbours(any_learner, support, query, alone):
    state, x = adapted(any_learner, support)
    together = nearest(any_learner, state, x, query, 3)
    found = nearest(any_learner, state, x, query[alone : alone + 1], 3)
    np.testing.assert_array_equal(found.nearest[0], together.nearest[alone])
    np.testing.assert_allclose(found.distances[0], together.distances[alone], rtol=1e-9)
