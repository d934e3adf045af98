"""What can be seen of a learner on a dataset: the map of its classes, its answers, what adapting moves."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from metalearn_core.data.sampler import EpisodeSampler, rotate
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.evaluate import Protocol
from metalearn_core.explanation.answers import SHOWN_EACH, explain_answers
from metalearn_core.explanation.embedding_map import EXAMPLES_A_CLASS, embedding_map
from metalearn_core.explanation.learner import LearnerExplanation, explain_learner
from metalearn_core.learners import LEARNERS, LearnerSpec, make_learner
from tests.metalearn_core.explanation.conftest import WAY

PROTOCOL = Protocol(way=3, shot=1, query=2, episodes=10, seed=5)


def class_means(learner, dataset):
    """The mean features of each test class's first examples, one class after the other."""
    means = []
    for entry in dataset.manifest.of_split("test"):
        first = int(dataset.class_offset[entry.id])
        for turns in entry.rotations:
            x = rotate(dataset.examples[first : first + EXAMPLES_A_CLASS], torch.tensor(turns))
            with torch.no_grad():
                means.append(learner.embed(x).mean(dim=0).numpy())
    return np.stack(means)


def test_the_map_shows_the_two_directions_of_largest_variance(make_double, dataset):
    learner = make_double("protonet")
    found = embedding_map(learner, dataset, "test", adapted={})
    means = class_means(learner, dataset)
    centred = means - means.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.array([(point.x, point.y) for point in found.points])
    for axis in range(2):
        expected = left[:, axis] * values[axis]
        sign = np.sign(expected @ places[:, axis])
        np.testing.assert_allclose(places[:, axis], sign * expected, atol=1e-8)
    np.testing.assert_allclose(found.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-8)
    identities = [(point.class_id, point.rotation) for point in found.points]
    assert identities == [(6, 0), (6, 1), (7, 0), (8, 0), (9, 0), (10, 0)]
    assert found.left_out == 0


def test_the_map_of_a_gradient_learner_is_that_of_the_weights_before_adapting(make_double, dataset):
    learner = make_double("maml")
    explained = explain_learner(learner, dataset, PROTOCOL)
    assert explained.map.space.startswith("the weights before adapting, batch-normalised over 30 examples")
    entries = [(entry.id, turns) for entry in dataset.manifest.of_split("test") for turns in entry.rotations]
    x = torch.cat(
        [
            rotate(dataset.examples[6 * number : 6 * number + EXAMPLES_A_CLASS], torch.tensor(turns))
            for number, turns in entries
        ]
    )
    with torch.no_grad():
        features, _ = learner.backbone.embed(
            dict(learner.backbone.named_parameters()), learner.standardise(x).unsqueeze(0)
        )
    means = features[0].view(len(entries), EXAMPLES_A_CLASS, -1).mean(dim=1).numpy()
    distances = np.linalg.norm(means - means.mean(axis=0), axis=1)
    places = np.array([(point.x, point.y) for point in explained.map.points])
    assert (np.linalg.norm(places, axis=1) <= distances + 1e-9).all(), "a projection shortens"
    assert sum(explained.map.explained) <= 1 + 1e-9
    variance = (places**2).sum() / ((means - means.mean(axis=0)) ** 2).sum()
    assert sum(explained.map.explained) == pytest.approx(variance)


def test_features_of_one_number_make_a_map_that_is_a_line(dataset):
    spec = LearnerSpec(learner="protonet", backbone="mlp", backbone_options={"hidden": "4,1"})
    found = embedding_map(make_learner(spec, dataset.spec, way=WAY, seed=1).eval(), dataset, "test", adapted={})
    assert {point.y for point in found.points} == {0.0}
    assert found.explained == pytest.approx((1.0, 0.0))


def test_three_classes_make_a_map_two_do_not(make_double, dataset):
    two = dataset.manifest.model_copy(update={"classes": dataset.manifest.classes[:8]})
    small = type(dataset)(dataset.folder, two, dataset.examples[:48])
    learner = make_double("protonet")
    assert embedding_map(learner, small, "test", adapted={}) is not None
    fewer = dataset.manifest.model_copy(
        update={"classes": (*dataset.manifest.classes[:6], dataset.manifest.classes[7])}
    )
    assert embedding_map(learner, type(dataset)(dataset.folder, fewer, dataset.examples), "test", adapted={}) is None


def test_answers_are_the_learners_own_with_the_neighbours_that_scikit_learn_finds(make_double, dataset):
    learner = make_double("protonet")
    sampler = EpisodeSampler(dataset, "test", PROTOCOL.shape, seed=PROTOCOL.seed)
    answers = explain_answers(learner, sampler)
    assert {answer.right for answer in answers} == {True, False}
    assert [answer.right for answer in answers] == sorted(answer.right for answer in answers)
    assert sum(answer.right for answer in answers) <= SHOWN_EACH
    for answer in answers:
        episode = sampler.batch(answer.episode, 1)
        index = sampler.index(answer.episode, 1)
        place = index.query_index.flatten().tolist().index(answer.query.row)
        with torch.no_grad():
            probabilities = learner(episode)[0, place].softmax(dim=-1)
            features, query = learner.embed(episode.support_x[0]), learner.embed(episode.query_x[0, place, None])
        column = int(probabilities.argmax())
        assert (answer.predicted_id, answer.predicted_rotation) == (
            int(index.class_id[0, column]),
            int(index.rotation[0, column]),
        )
        assert answer.probability == pytest.approx(float(probabilities[column]))
        assert answer.right == (column == int(episode.query_y[0, place]))
        distances, places = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(features).kneighbors(query)
        np.testing.assert_allclose([near.distance for near in answer.nearest], distances[0], rtol=1e-9)
        columns = [int(episode.support_y[0, number]) for number in places[0]]
        assert [near.example.class_id for near in answer.nearest] == index.class_id[0, columns].tolist()
        assert [near.example.row for near in answer.nearest] == index.support_index[0, columns, 0].tolist()
        assert answer.to_predicted == pytest.approx(distances[0, 0]), "with one shot the prototype is the example"


def test_no_class_is_shown_twice_and_no_episode_twice_among_right_or_wrong_answers(make_double, dataset):
    answers = explain_learner(make_double("transfer"), dataset, PROTOCOL).answers
    assert len({(answer.query.class_id, answer.query.rotation) for answer in answers}) == len(answers) > 2
    for right in (True, False):
        own = [answer.episode for answer in answers if answer.right == right]
        assert len(set(own)) == len(own)


def test_every_learner_can_be_explained_the_same_each_time_and_as_json(any_learner, dataset):
    protocol = PROTOCOL.model_copy(update={"shot": 2})
    any_learner.train()
    first = explain_learner(any_learner, dataset, protocol)
    assert any_learner.training
    assert first == explain_learner(any_learner, dataset, protocol)
    assert LearnerExplanation.model_validate_json(first.model_dump_json()) == first
    assert len(first.map.points) == 6


def test_a_way_that_the_learner_does_not_take_is_refused_before_any_work(make_double, dataset):
    with pytest.raises(UsageError, match="maml was trained for exactly 3 classes"):
        explain_learner(make_double("maml"), dataset, PROTOCOL.model_copy(update={"way": 4}))


@pytest.mark.parametrize("name", [name for name, kind in sorted(LEARNERS.items()) if kind.info.variable_shape])
def test_of_varied_episodes_no_padding_is_asked_or_near(make_double, dataset, name):
    learner = make_double(name)
    way = 3 if learner.info.fixed_way else "2-5"
    protocol = PROTOCOL.model_copy(update={"way": way, "shot": "1-4"})
    sampler = EpisodeSampler(dataset, "test", protocol.shape, seed=protocol.seed)
    answers = explain_learner(learner, dataset, protocol).answers
    assert answers
    for answer in answers:
        index, batch = sampler.index(answer.episode, 1), sampler.batch(answer.episode, 1)
        classes = list(zip(index.class_id[0].tolist(), index.rotation[0].tolist(), strict=True))
        column = classes.index((answer.query.class_id, answer.query.rotation))
        place = index.query_index[0, column].tolist().index(answer.query.row)
        assert place < index.query_count[0, column]
        given = {
            (*own, row)
            for own, rows, count in zip(classes, index.support_index[0], index.support_count[0], strict=True)
            for row in rows[:count].tolist()
        }
        near = [(near.example.class_id, near.example.rotation, near.example.row) for near in answer.nearest]
        assert len(set(near)) == len(near) == min(5, int(batch.support_mask.sum()))
        assert set(near) <= given
        keep, asked = batch.support_mask[0], batch.query_mask[0]
        with torch.no_grad():
            state = learner.adapt(batch.support_x[:, keep], batch.support_y[:, keep], way=batch.way)
            logits = learner.predict(state, batch.query_x[:, asked])[0]
        before = int(asked[: column * index.query_index.shape[2] + place].sum())
        probabilities = logits[before].softmax(dim=-1)
        assert answer.probability == pytest.approx(float(probabilities.max()), rel=1e-6)
        assert (answer.predicted_id, answer.predicted_rotation) == classes[probabilities.argmax()]


def test_classes_that_were_seen_in_training_are_left_out_and_the_others_keep_their_numbers(make_double, dataset):
    first, *others = dataset.manifest.of_split("test")
    found = explain_learner(make_double("protonet"), dataset, PROTOCOL, [first.digest])
    assert [point.class_id for point in found.map.points] == [entry.id for entry in others]
    for answer in found.answers:
        examples = [answer.query, *(near.example for near in answer.nearest)]
        assert {answer.predicted_id, *(one.class_id for one in examples)} <= {entry.id for entry in others}
        assert all(one.row // 6 == one.class_id for one in examples), "each class has six rows"
