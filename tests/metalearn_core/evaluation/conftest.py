"""A dataset in memory whose classes are known with difficulty, and learners that were not trained."""

import pytest

from metalearn_core.learners import LearnerSpec, make_learner


@pytest.fixture(scope="session")
def dataset(noisy_dataset):
    return noisy_dataset


@pytest.fixture
def protonet(dataset):
    return make_learner(LearnerSpec(learner="protonet", backbone_options={"width": 16}), dataset.spec, seed=1)


@pytest.fixture
def maml(dataset):
    return make_learner(LearnerSpec(learner="maml", backbone_options={"width": 8}), dataset.spec, way=5, seed=1)
