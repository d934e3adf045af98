import pytest
import torch

from metalearn_core.errors import UsageError
from metalearn_core.learners import LEARNERS
from metalearn_core.learners.transfer.pretraining import PretrainedLearner

pretrained = pytest.mark.parametrize(
    "name", sorted(name for name, kind in LEARNERS.items() if issubclass(kind, PretrainedLearner))
)


@pretrained
def test_training_loss_is_smoothed_cross_entropy_over_the_training_classes(make_double, images, name):
    learner = make_double(name, label_smoothing=0.2).train()
    x, y = torch.rand(9, *images.example_shape).double(), torch.arange(9) % images.train_classes
    outcome = learner.train_examples(x, y)
    features, statistics = learner.backbone.embed(
        dict(learner.backbone.named_parameters()), learner.standardise(x).unsqueeze(0)
    )
    scores = torch.log_softmax(features[0] @ learner.classifier.weight.T + learner.classifier.bias, dim=1)
    expected = -(0.8 * scores[range(9), y] + 0.2 * scores.mean(dim=1)).mean()
    torch.testing.assert_close(outcome.losses, expected[None])
    assert set(statistics) <= set(outcome.statistics) == set(learner.running_averages())


@pretrained
def test_has_no_transductive_mode(make_double, name):
    with pytest.raises(UsageError, match=f"{name} is always inductive"):
        make_double(name, batch_norm="transductive")
