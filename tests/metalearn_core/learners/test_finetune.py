import pytest
import torch
from torch.nn import functional as F


def naive_features(learner, weights, x):
    """The convolution blocks written out, under the running statistics, at unit length."""
    hidden = (x - learner.mean) / learner.std
    running = dict(learner.backbone.named_buffers())
    for number in range(len(learner.backbone.blocks)):
        name = f"blocks.{number}"
        hidden = F.conv2d(hidden, weights[f"{name}.conv.weight"], padding=1)
        hidden = F.batch_norm(
            hidden,
            running[f"{name}.norm.mean"],
            running[f"{name}.norm.var"],
            weights[f"{name}.norm.weight"],
            weights[f"{name}.norm.bias"],
            training=False,
        )
        hidden = F.max_pool2d(F.relu(hidden), 2)
    features = hidden.flatten(1)
    return features / features.norm(dim=1, keepdim=True)


def naive_logits(learner, x, y, query, way):
    """Fine-tune on one episode with torch's own optimisers."""
    config = learner.config
    weights = {name: value.detach().clone() for name, value in learner.backbone.named_parameters()}
    head = torch.zeros(way, learner.backbone.feature_size, dtype=torch.float64)
    if config.head == "imprinted":
        features = naive_features(learner, weights, x)
        for label in range(way):
            mean = features[y == label].mean(dim=0)
            head[label] = config.scale * mean / mean.norm()
    bias = torch.zeros(way, dtype=torch.float64)
    leaves = [value.requires_grad_() for value in (*weights.values(), head, bias)]
    kind = torch.optim.Adam if config.inner_optimiser == "adam" else torch.optim.SGD
    optimiser = kind(leaves, lr=config.inner_lr)
    for _ in range(config.eval_steps):
        optimiser.zero_grad()
        F.cross_entropy(naive_features(learner, weights, x) @ head.T + bias, y).backward()
        optimiser.step()
    return naive_features(learner, weights, query) @ head.T + bias


@pytest.mark.parametrize("head", ["imprinted", "zero"])
@pytest.mark.parametrize(("optimiser", "inner_lr"), [("adam", 1e-2), ("sgd", 0.1)])
def test_many_episodes_at_once_are_a_plain_loop_over_them(make_double, make_episodes, optimiser, inner_lr, head):
    learner = make_double("finetune", eval_steps=4, inner_optimiser=optimiser, inner_lr=inner_lr, head=head).eval()
    episodes = make_episodes(shot=3)
    logits = learner(episodes)
    for number in range(len(episodes)):
        x, y, query = (getattr(episodes, name)[number] for name in ("support_x", "support_y", "query_x"))
        torch.testing.assert_close(logits[number], naive_logits(learner, x, y, query, 4).detach(), rtol=1e-6, atol=1e-6)


def test_without_steps_an_imprinted_head_gives_the_scaled_cosine_to_each_centroid(make_double, make_episodes):
    learner, episodes = make_double("finetune", eval_steps=0, scale=3.0).eval(), make_episodes()
    logits = learner(episodes)
    weights = {name: value.detach() for name, value in learner.backbone.named_parameters()}
    support, query = (naive_features(learner, weights, x[0]) for x in (episodes.support_x, episodes.query_x))
    centroids = torch.stack([support[episodes.support_y[0] == label].mean(dim=0) for label in range(4)])
    cosines = torch.cosine_similarity(query[:, None], centroids[None], dim=-1)
    torch.testing.assert_close(logits[0], 3 * cosines)


def test_fine_tuning_lowers_the_loss_on_the_support_set(make_double, make_episodes):
    episodes = make_episodes(shot=3)
    losses = []
    for steps in (0, 5, 20):
        learner = make_double("finetune", eval_steps=steps, inner_lr=1e-2).eval()
        state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
        logits = learner.predict(state, episodes.support_x)
        losses.append(F.cross_entropy(logits.flatten(0, 1), episodes.support_y.flatten()).item())
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_no_gradient_is_kept(make_double, make_episodes, mode):
    learner, episodes = make_double("finetune", eval_steps=2).eval(), make_episodes()
    with mode():
        without = learner(episodes)
    torch.testing.assert_close(without.clone(), learner(episodes).detach())


def test_the_pretrained_weights_are_left_as_they_are(make_double, make_episodes):
    learner, episodes = make_double("finetune").train(), make_episodes()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner(episodes)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_padding_that_is_no_number_changes_nothing(make_double, make_episodes):
    learner, episodes = make_double("finetune", eval_steps=2).eval(), make_episodes()
    x, y = F.pad(episodes.support_x, (0, 0, 0, 0, 0, 0, 0, 1), value=torch.nan), F.pad(episodes.support_y, (0, 1))
    mask = torch.arange(x.shape[1]).expand(3, -1) < episodes.support_x.shape[1]
    state = learner.adapt(x, y, way=4, support_mask=mask)
    torch.testing.assert_close(learner.predict(state, episodes.query_x), learner(episodes))
