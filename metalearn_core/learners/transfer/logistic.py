"""Multinomial logistic regression on few examples, for many episodes at once, solved deterministically."""

import torch
from torch import Tensor

ITERATIONS = 300


def fit_logistic(
    features: Tensor, members: Tensor, inverse_penalty: float, iterations: int = ITERATIONS
) -> tuple[Tensor, Tensor]:
    """Minimise C Σᵢ cross-entropy(xᵢ) + ½‖W‖² over W and the unpenalised intercept, in each of b episodes.

    The minimum lies in the span of the examples, W = AᵀX (representer theorem), so that the work is with the s×s Gram
    matrix K: Nesterov's accelerated gradient in that span, steps of 1/L, momentum restarted where it points uphill. The
    features are centred first, which the intercept makes up for, and the intercept is scaled to curve like the rest.

    Args:
        features: X (b, s, d).
        members: (b, s, way) one-hot labels; a row of zeros is an example left out, a column of zeros a class without
            examples, which takes no part.
        inverse_penalty: C.
        iterations: how many; enough for 1e-6 where C·‖x‖² is not above some tens.

    Returns:
        W (b, way, d) and the intercept (b, way).
    """
    weight = members.sum(dim=-1, keepdim=True)
    present = members.sum(dim=1, keepdim=True) > 0
    count = weight.sum(dim=1, keepdim=True).clamp_min(1)
    centre = (features * weight).sum(dim=1, keepdim=True) / count
    centred = (features - centre) * weight
    gram = centred @ centred.mT
    # The softmax curves by at most ½, the logits' span by K's largest eigenvalue, which its Frobenius norm bounds.
    largest = torch.linalg.matrix_norm(gram).view(-1, 1, 1)
    step = 1 / (0.5 * inverse_penalty * largest + 1)
    scale = largest / count

    def residual(dual: Tensor, intercept: Tensor) -> Tensor:
        logits = torch.where(present, gram @ dual + intercept, -torch.inf)
        return inverse_penalty * weight * (torch.softmax(logits, dim=-1) - members)

    dual = torch.zeros_like(members)
    intercept = members.new_zeros(members.shape[0], 1, members.shape[2])
    ahead_dual, ahead_intercept = dual, intercept
    age = members.new_ones(members.shape[0], 1, 1)
    for _ in range(iterations):
        error = residual(ahead_dual, ahead_intercept)
        slope = error + ahead_dual
        slope_intercept = error.sum(dim=1, keepdim=True)
        new_dual, new_intercept = ahead_dual - step * slope, ahead_intercept - step * scale * slope_intercept
        moved, moved_intercept = new_dual - dual, new_intercept - intercept
        uphill = ((gram @ slope) * moved).sum((1, 2)) + (slope_intercept * moved_intercept).sum((1, 2)) > 0
        age = torch.where(uphill.view(-1, 1, 1), 1.0, age)
        next_age = (1 + torch.sqrt(1 + 4 * age.square())) / 2
        momentum = (age - 1) / next_age
        ahead_dual, ahead_intercept = new_dual + momentum * moved, new_intercept + momentum * moved_intercept
        dual, intercept, age = new_dual, new_intercept, next_age
    matrix = dual.mT @ centred
    intercept = intercept - (centre @ matrix.mT)
    return matrix, torch.where(present, intercept, 0.0).squeeze(1)
