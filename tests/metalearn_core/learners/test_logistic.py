import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from metalearn_core.learners.transfer.logistic import fit_logistic


@pytest.mark.parametrize("inverse_penalty", [0.1, 1.0, 10.0, 30.0])
@pytest.mark.parametrize(("way", "shot"), [(5, 1), (5, 5), (3, 4)])
def test_agrees_with_scikit_learn(way, shot, inverse_penalty):
    generator = torch.Generator().manual_seed(way * shot)
    x = F.normalize(torch.randn(3, way * shot, 16, generator=generator, dtype=torch.float64).abs(), dim=-1)
    y = torch.arange(way).repeat(shot).expand(3, -1)
    weight, intercept = fit_logistic(x, F.one_hot(y, way).double(), inverse_penalty)
    for episode in range(3):
        oracle = LogisticRegression(C=inverse_penalty, tol=1e-12, max_iter=10_000).fit(x[episode], y[episode])
        np.testing.assert_allclose(weight[episode], oracle.coef_, atol=1e-5)
        np.testing.assert_allclose(
            intercept[episode] - intercept[episode].mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-5
        )


def test_examples_left_out_and_absent_classes_take_no_part():
    x = torch.randn(1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    members = F.one_hot(torch.tensor([[0, 2, 0, 2, 1, 1]]), 4).double()
    members[:, 4:] = 0
    weight, intercept = fit_logistic(x, members, 1.0)
    alone, alone_intercept = fit_logistic(x[:, :4], members[:, :4][..., [0, 2]], 1.0)
    torch.testing.assert_close(weight[:, [0, 2]], alone)
    torch.testing.assert_close(intercept[:, [0, 2]], alone_intercept)
    assert weight[:, [1, 3]].abs().max() == 0
