import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F


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
