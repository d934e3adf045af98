from dataclasses import replace

import pytest
import torch

from metalearn_core.errors import UsageError

SMALL = {"slots": 5, "slot_size": 4, "heads": 2, "controller": 6}


def lstm(cell, x, hidden, memory):
    gates = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ hidden + cell.bias_hh
    let_in, forget, new, out = gates.chunk(4)
    memory = torch.sigmoid(forget) * memory + torch.sigmoid(let_in) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(memory), memory


def read_weights(learner, head, key, rows):
    """Equations of reading: softmax over the rows of β · cosine."""
    strength = torch.exp(learner.log_strength[head, 0])
    length = torch.sqrt(key @ key + 1e-6)
    cosines = [key @ row / (length * torch.sqrt(row @ row + 1e-6)) for row in rows]
    return torch.softmax(strength * torch.stack(cosines), dim=0)


def naive_logits(learner, support, labels, queries):
    """Santoro 2016 for one episode: loops over steps, heads, rows and queries."""
    config, way = learner.config, learner.way
    zero = torch.zeros(1, dtype=torch.float64)
    blank_x, blank_y, hot = zero.expand(support.shape[1]), zero.expand(way), torch.eye(way).double()
    shown = [hot[label] for label in labels]
    pairs = [*zip(support, shown, strict=True)]
    if config.label_offset == 1:
        pairs = list(zip([*support, blank_x], [blank_y, *shown], strict=True))
    rows = [zero.expand(config.slot_size) for _ in range(config.slots)]
    usage = zero.expand(config.slots)
    reads = [zero.expand(config.slots)] * config.heads
    hidden = cell = zero.expand(config.controller)
    was_read = zero.expand(config.heads * config.slot_size)  # r of the step before: "an additional input" (section 3.1)

    def keys_of(hidden):
        out = torch.tanh(learner.keys.weight @ hidden + learner.keys.bias)
        return [out[head * config.slot_size : (head + 1) * config.slot_size] for head in range(config.heads)]

    def retrieved(reads):
        return torch.cat([sum(weight * row for weight, row in zip(w, rows, strict=True)) for w in reads])

    for x, y in pairs:
        hidden, cell = lstm(learner.controller, torch.cat([x, y, was_read]), hidden, cell)
        keys = keys_of(hidden)
        least = sorted(range(config.slots), key=lambda i: (usage[i].item(), i))[: config.heads]
        writes = []
        for head in range(config.heads):
            gate, alone = torch.sigmoid(learner.write_gate[head, 0]), torch.zeros(config.slots).double()
            alone[least[head]] = 1
            writes.append(gate * reads[head] + (1 - gate) * alone)
        rows = [
            (0 if i in least else rows[i]) + sum(w[i] * key for w, key in zip(writes, keys, strict=True))
            for i in range(config.slots)
        ]
        reads = [read_weights(learner, head, key, rows) for head, key in enumerate(keys)]
        was_read = retrieved(reads)
        usage = config.usage_decay * usage + sum(reads) + sum(writes)
    logits = []
    for query in queries:
        asked, _ = lstm(learner.controller, torch.cat([query, blank_y, was_read]), hidden, cell)
        found = retrieved([read_weights(learner, head, key, rows) for head, key in enumerate(keys_of(asked))])
        logits.append(learner.output.weight @ torch.cat([asked, found]) + learner.output.bias)
    return torch.stack(logits)


@pytest.mark.parametrize("label_offset", [0, 1])
def test_logits_and_gradients_are_those_of_a_naive_loop(make_double, make_episodes, label_offset):
    learner, episodes = make_double("mann", label_offset=label_offset, **SMALL).eval(), make_episodes(b=2)
    support, query = (torch.stack([learner.embed(x) for x in xs]) for xs in (episodes.support_x, episodes.query_x))
    logits = learner(episodes)
    expected = torch.stack([naive_logits(learner, support[n], episodes.support_y[n], query[n]) for n in range(2)])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)
    parameters = list(learner.parameters())
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).double()
    got = torch.autograd.grad((logits * weight).sum(), parameters)
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_the_controller_is_torchs_lstm(make_double):
    learner = make_double("mann", **SMALL)
    x, hidden, cell = (torch.randn(size).double() for size in (learner.controller.input_size, 6, 6))
    expected = learner.controller(x[None], (hidden[None], cell[None]))
    for found, wanted in zip(lstm(learner.controller, x, hidden, cell), expected, strict=True):
        torch.testing.assert_close(found, wanted[0])


@pytest.mark.parametrize("label_offset", [0, 1])
def test_examples_masked_out_anywhere_in_the_sequence_are_as_if_they_were_not_there(
    make_double, make_episodes, label_offset
):
    learner, episodes = make_double("mann", label_offset=label_offset, **SMALL).eval(), make_episodes()
    keep = torch.tensor([0, 2, 3, 5, 7])
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[:, keep] = True
    mask[1] = True  # episodes of another length beside
    short = replace(episodes, support_x=episodes.support_x[:, keep], support_y=episodes.support_y[:, keep])
    found = learner(replace(episodes, support_mask=mask))
    torch.testing.assert_close(found[[0, 2]], learner(short)[[0, 2]])
    torch.testing.assert_close(found[1], learner(episodes)[1])


def test_a_full_memory_gives_up_the_least_used_rows(make_double):
    learner = make_double("mann", **SMALL)
    features = torch.randn(1, 8, learner.backbone.feature_size).double()
    state = learner.adapt_features(features, torch.arange(8).remainder(4)[None], way=4)
    assert state["rows"].shape == (1, 5, 4)
    assert (state["rows"].abs().amax(dim=-1) > 0).all()
    assert (state["usage"] > 0).all()


def test_reading_a_query_leaves_the_state_as_it_was(make_double, make_episodes):
    learner, episodes = make_double("mann").eval(), make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    before = {name: value.clone() for name, value in state.items()}
    learner.predict(state, episodes.query_x)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_what_it_cannot_do_is_said(make_double, make_episodes):
    with pytest.raises(UsageError, match="trained for 4-way episodes, got 3-way"):
        make_double("mann")(make_episodes(way=3))
    with pytest.raises(UsageError, match=r"mann.heads: got 6, more than the 5 slots"):
        make_double("mann", **{**SMALL, "heads": 6})
