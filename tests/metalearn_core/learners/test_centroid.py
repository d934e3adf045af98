import pytest
import torch
from sklearn.neighbors import NearestCentroid

from metalearn_core.backbones.contract import move_averages


def transformed(features, transform, centre):
    """SimpleShot's three transforms, as its section 3.2 writes them."""
    if transform == "CL2N":
        features = features - centre
    return features if transform == "UN" else features / features.square().sum(dim=-1, keepdim=True).sqrt()


@pytest.mark.parametrize("transform", ["UN", "L2N", "CL2N"])
def test_the_predicted_class_is_scikit_learns_nearest_centroid(make_double, make_episodes, transform):
    learner, episodes = make_double("centroid", transform=transform).eval(), make_episodes(way=4, shot=3, query=20)
    learner.centre.copy_(torch.linspace(0, 1, len(learner.centre)))
    learner.centre_share.fill_(1)
    logits = learner(episodes).detach()
    for number in range(len(episodes)):
        support, query = (
            transformed(learner.embed(x[number]).detach(), transform, learner.centre)
            for x in (episodes.support_x, episodes.query_x)
        )
        oracle = NearestCentroid().fit(support, episodes.support_y[number])
        assert logits[number].argmax(dim=1).tolist() == oracle.predict(query).tolist()
        distances = torch.cdist(query, torch.from_numpy(oracle.centroids_))
        torch.testing.assert_close(logits[number], -10 * distances.square(), rtol=1e-9, atol=1e-9)


def test_the_cosine_is_that_of_a_query_and_a_centroid(make_double, make_episodes):
    learner, episodes = make_double("centroid", distance="cosine", scale=2.0).eval(), make_episodes(b=1)
    support, query = (
        transformed(learner.embed(x[0]).detach(), "CL2N", 0) for x in (episodes.support_x, episodes.query_x)
    )
    logits = learner(episodes)[0]
    for column in range(4):
        centroid = support[episodes.support_y[0] == column].mean(dim=0)
        cosines = torch.cosine_similarity(query, centroid[None], dim=1)
        torch.testing.assert_close(logits[:, column], 2 * cosines)


def test_training_averages_the_features_of_its_batches(make_double, images):
    learner = make_double("centroid").train()
    assert not learner.centre.any()
    x, y = torch.rand(9, *images.example_shape).double(), torch.arange(9) % images.train_classes
    features, _ = learner.embed_by_episode(x[None])
    move_averages(learner.running_averages(), learner.train_examples(x, y).statistics)
    torch.testing.assert_close(learner.centre, 0.1 * features[0].mean(dim=0))


def test_the_centre_is_the_batches_weighted_mean_from_the_first_batch_on(make_double, make_episodes, images):
    learner, episodes = make_double("centroid").train(), make_episodes(b=1)
    y = torch.arange(9) % images.train_classes
    means = []
    for seed in range(4):
        x = torch.rand(9, *images.example_shape, generator=torch.Generator().manual_seed(seed)).double()
        means.append(learner.embed_by_episode(x[None])[0][0].mean(dim=0).detach())
        move_averages(learner.running_averages(), learner.train_examples(x, y).statistics)
        ages = torch.arange(len(means) - 1, -1, -1, dtype=torch.float64)
        centre = (0.9**ages / (0.9**ages).sum()) @ torch.stack(means)
        with torch.no_grad():
            found = learner.eval().compared_features({}, episodes.query_x)
            expected = transformed(learner.embed(episodes.query_x[0]), "CL2N", centre)
        torch.testing.assert_close(found[0], expected)
        learner.train()


def test_the_centre_is_kept_with_the_weights(make_double):
    learner, other = make_double("centroid"), make_double("centroid")
    learner.centre.fill_(3)
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.centre, learner.centre)


def test_features_of_zero_length_give_numbers(make_double, make_episodes):
    learner, episodes = make_double("centroid").eval(), make_episodes()
    for parameter in learner.parameters():
        parameter.data.zero_()
    assert torch.isfinite(learner(episodes)).all()
