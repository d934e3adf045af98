import numpy as np
import pytest
import torch
from torch.backends import cuda, cudnn

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.evaluation.scoring import CALIBRATION_BINS, Scorer, evaluate_episodes
from metalearn_core.learners import LearnerSpec, make_learner

SHAPE = EpisodeShape(5, 2, 4)


def sampler_of(dataset, **options):
    return EpisodeSampler(dataset, "test", SHAPE, seed=3, **options)


def by_hand(learner, sampler, episodes):
    """Score one episode at a time, one query at a time, with plain Python."""
    learner.eval()
    accuracy, loss, tallies, confused, confidences = [], [], [], [], []
    for number in range(episodes):
        episode, index = sampler.batch(number, 1), sampler.index(number, 1)
        with torch.no_grad():
            logits = learner(episode)[0].double().numpy()
        classes = (4 * index.class_id + index.rotation)[0].tolist()
        labels = episode.query_y[0].tolist()
        correct, losses = [0] * len(classes), []
        for row, label in zip(logits, labels, strict=True):
            p = np.exp(row - row.max())
            p /= p.sum()
            losses.append(-np.log(p[label]))
            confidences.append((p.max(), int(p.argmax()) == label))
            if p.argmax() == label:
                correct[label] += 1
            else:
                confused.append((classes[label], classes[int(p.argmax())]))
        accuracy.append(sum(correct) / len(labels))
        loss.append(np.mean(losses))
        tallies.append(dict(zip(classes, correct, strict=True)))
    return np.array(accuracy), np.array(loss), tallies, sorted(confused), confidences


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_scores_are_those_counted_by_hand(dataset, request, name):
    learner, sampler = request.getfixturevalue(name), sampler_of(dataset)
    scores = evaluate_episodes(learner, sampler, 21)
    accuracy, loss, tallies, confused, confidences = by_hand(learner, sampler, 21)
    np.testing.assert_allclose(scores.accuracy, accuracy)
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-4)
    found = [
        dict(zip(c.tolist(), n.tolist(), strict=True)) for c, n in zip(scores.classes, scores.correct, strict=True)
    ]
    assert found == tallies
    assert sorted(map(tuple, scores.confused.tolist())) == confused
    count, confidence, right = scores.calibration
    assert count.sum() == 21 * 20
    assert confidence.sum() == pytest.approx(sum(p for p, _ in confidences), rel=1e-4)
    assert right.sum() == sum(hit for _, hit in confidences)
    upper = np.array([sum(p >= b / CALIBRATION_BINS for p, _ in confidences) for b in range(CALIBRATION_BINS)])
    np.testing.assert_allclose(np.cumsum(count[::-1])[::-1], upper, atol=1)


def test_embedding_once_gives_the_numbers_of_whole_episodes(dataset, protonet):
    sampler = sampler_of(dataset)
    with Scorer(protonet) as fast, Scorer(protonet) as slow:
        slow._embed_once = False
        one, other = fast.score(sampler, 60), slow.score(sampler, 60)
    assert (one.classes % 4 != 0).any(), "rotated classes take part"
    np.testing.assert_array_equal(one.accuracy, other.accuracy)
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_array_equal(one.correct, other.correct)
    np.testing.assert_array_equal(one.confused, other.confused)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4)


def test_a_second_stream_finds_the_embeddings_of_the_first(dataset, protonet):
    sampler, domain = sampler_of(dataset), sampler_of(dataset, domain="broad")
    with Scorer(protonet) as scorer:
        scorer.score(sampler, 5)
        after = scorer.score(domain, 30)
    np.testing.assert_array_equal(after.accuracy, evaluate_episodes(protonet, domain, 30).accuracy)


@pytest.mark.parametrize(("name", "few", "many"), [("protonet", 30, 2300), ("maml", 9, 20)])
def test_an_episode_has_the_same_score_however_many_are_asked_for(dataset, request, name, few, many):
    learner, sampler = request.getfixturevalue(name), sampler_of(dataset)
    first, all_of_them = (evaluate_episodes(learner, sampler, episodes) for episodes in (few, many))
    np.testing.assert_array_equal(first.accuracy, all_of_them.accuracy[:few])
    assert len(all_of_them.accuracy) == many


def test_the_learner_and_torch_are_left_as_they_were(dataset, maml):
    maml.train()
    maml.batch_norm = "transductive"
    threads, weights = torch.get_num_threads(), {k: v.clone() for k, v in maml.state_dict().items()}
    evaluate_episodes(maml, sampler_of(dataset), 10)
    assert maml.training
    assert maml.batch_norm == "transductive"
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, weights[name]) for name, value in maml.state_dict().items())


def test_fp32_is_no_tf32_while_episodes_are_scored(dataset, protonet):
    def precisions(_=None):
        found.append([setting.fp32_precision for setting in (cudnn.conv, cudnn.rnn, cuda.matmul)])

    found = []
    precisions()
    with Scorer(protonet, progress=precisions) as scorer:
        scorer.score(sampler_of(dataset), 5)
    precisions()
    before, *inside, after = found
    assert inside
    assert all(each == ["ieee"] * 3 for each in inside)
    assert before == after != inside[0]


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_the_batch_norm_mode_is_the_one_asked_for(dataset, request, name):
    learner, sampler = request.getfixturevalue(name), sampler_of(dataset)
    inductive, transductive = (evaluate_episodes(learner, sampler, 20, m) for m in ("inductive", "transductive"))
    assert not np.allclose(inductive.loss, transductive.loss)
    learner.batch_norm = "transductive"
    np.testing.assert_allclose(transductive.accuracy, by_hand(learner, sampler, 20)[0])


def test_a_learner_that_is_always_inductive_says_so(dataset):
    transfer = make_learner(LearnerSpec(learner="transfer"), dataset.spec)
    with pytest.raises(UsageError, match="transfer is always inductive"):
        evaluate_episodes(transfer, sampler_of(dataset), 10, "transductive")


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_answers_that_are_no_numbers_are_no_result(dataset, request, name):
    learner = request.getfixturevalue(name)
    with torch.no_grad():
        next(learner.parameters()).fill_(torch.nan)
    with pytest.raises(MetalearnError, match=f"{name}: its answers in episode 0 are no numbers"):
        evaluate_episodes(learner, sampler_of(dataset), 10)


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_scoring_can_be_stopped_and_leaves_the_learner_as_it_was(dataset, request, name):
    class StoppedError(Exception):
        pass

    def stop(_episodes):
        raise StoppedError

    learner = request.getfixturevalue(name).train()
    with pytest.raises(StoppedError), Scorer(learner, progress=stop) as scorer:
        scorer.score(sampler_of(dataset), 10_000)
    assert learner.training
