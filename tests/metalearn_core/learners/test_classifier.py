import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from metalearn_core.errors import UsageError


def test_training_loss_is_smoothed_cross_entropy_over_the_training_classes(make_double, images):
    learner = make_double("transfer", label_smoothing=0.2).train()
    x, y = torch.rand(9, *images.example_shape).double(), torch.arange(9) % images.train_classes
    outcome = learner.train_examples(x, y)
    features, statistics = learner.embed_by_episode(x[None])
    scores = torch.log_softmax(features[0] @ learner.classifier.weight.T + learner.classifier.bias, dim=1)
    expected = -(0.8 * scores[range(9), y] + 0.2 * scores.mean(dim=1)).mean()
    torch.testing.assert_close(outcome.losses, expected[None])
    assert set(outcome.statistics) == set(statistics)
    gradients = torch.autograd.grad(outcome.losses.sum(), list(learner.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_predictions_are_scikit_learns_on_unit_features(make_double, make_episodes):
    learner, episodes = make_double("transfer", inverse_penalty=5.0).eval(), make_episodes()
    probabilities = torch.softmax(learner(episodes), dim=-1).detach()
    for number in range(3):
        support, query = (
            F.normalize(learner.embed(x[number]), dim=1).detach() for x in (episodes.support_x, episodes.query_x)
        )
        oracle = LogisticRegression(C=5.0, tol=1e-12, max_iter=10_000).fit(support, episodes.support_y[number])
        torch.testing.assert_close(
            probabilities[number], torch.from_numpy(oracle.predict_proba(query)), atol=1e-5, rtol=0
        )


def test_has_no_transductive_mode(make_double):
    with pytest.raises(UsageError, match="transfer is always inductive"):
        make_double("transfer", batch_norm="transductive")
