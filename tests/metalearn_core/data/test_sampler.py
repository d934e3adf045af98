import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeIndex, EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler, ExampleSampler, class_table, rotate
from metalearn_core.errors import UsageError

SHAPE = EpisodeShape(3, 2, 4)
shapes = st.builds(EpisodeShape, st.integers(2, 5), st.integers(1, 3), st.integers(1, 5))


def sampler(
    dataset: EpisodeDataset, shape: EpisodeShape = SHAPE, seed: int = 0, split: str = "train"
) -> EpisodeSampler:
    return EpisodeSampler(dataset, split, shape, seed=seed)


def same(one: EpisodeIndex, other: EpisodeIndex) -> bool:
    present = {name: value for name, value in vars(one).items() if value is not None}
    return all(torch.equal(value, vars(other)[name]) for name, value in present.items())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(shape=shapes, seed=st.integers(0, 9), first=st.integers(0, 10**9))
def test_classes_and_examples_of_an_episode_are_distinct(
    dataset: EpisodeDataset, shape: EpisodeShape, seed: int, first: int
) -> None:
    index = sampler(dataset, shape, seed).index(first, 6)
    pairs = index.class_id * 4 + index.rotation
    assert all(len(set(row)) == shape.way for row in pairs.tolist())
    examples = torch.cat([index.support_index, index.query_index], dim=-1)
    assert all(len(set(row)) == shape.shot + shape.query for row in examples.flatten(0, 1).tolist())
    start = dataset.class_offset[index.class_id].unsqueeze(-1)
    assert bool((examples >= start).all())
    assert bool((examples < start + dataset.class_count[index.class_id].unsqueeze(-1)).all())
    assert all(sorted(row) == list(range(shape.way * shape.shot)) for row in index.support_order.tolist())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(first=st.integers(0, 10**6), count=st.integers(1, 9))
def test_a_batch_is_its_episodes_one_by_one(dataset: EpisodeDataset, first: int, count: int) -> None:
    stream = sampler(dataset)
    batch = stream.index(first, count)
    for i in range(count):
        assert same(batch[i : i + 1], sampler(dataset).index(first + i, 1))
    assert same(batch, stream.index(first, count))


def test_seed_shape_split_and_domain_each_name_another_stream(dataset: EpisodeDataset) -> None:
    streams = [
        sampler(dataset),
        sampler(dataset, seed=1),
        sampler(dataset, EpisodeShape(3, 2, 3)),
        sampler(dataset, split="test"),
        EpisodeSampler(dataset, "train", SHAPE, seed=0, domain=dataset.manifest.of_split("train")[0].domain),
    ]
    assert len({stream.key for stream in streams}) == len(streams)


def test_only_classes_of_the_split_or_domain_are_drawn(dataset: EpisodeDataset) -> None:
    entry = dataset.manifest.of_split("test")[0]
    index = EpisodeSampler(dataset, "test", SHAPE, seed=0, domain=entry.domain).index(0, 50)
    drawn = {dataset.manifest.classes[i] for i in index.class_id.flatten().tolist()}
    assert {found.domain for found in drawn} == {entry.domain}
    assert {found.split for found in drawn} == {"test"}


def test_classes_examples_and_labels_are_uniform(dataset: EpisodeDataset) -> None:
    stream = sampler(dataset, EpisodeShape(4, 2, 2), seed=5)
    index = stream.index(0, 6000)
    table = {pair: i for i, pair in enumerate(zip(*(t.tolist() for t in class_table(dataset, "train")), strict=True))}
    pairs = [table[pair] for pair in zip(index.class_id[:, 0].tolist(), index.rotation[:, 0].tolist(), strict=True)]
    within = (index.support_index - dataset.class_offset[index.class_id].unsqueeze(-1))[..., 0].flatten()
    first_label = index.support_order[:, 0] // 2
    for values, cells in ((torch.tensor(pairs), len(table)), (within, 8), (first_label, 4)):
        counts = torch.bincount(values, minlength=cells).double()
        expected = len(values) / cells
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert abs(statistic - (cells - 1)) < 4 * (2 * (cells - 1)) ** 0.5


@pytest.mark.parametrize("turned_bytes", [10**9, 0])
def test_pixels_are_those_of_the_index_turned_like_numpy_does(
    dataset: EpisodeDataset, turned_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalearn_core.data.dataset.TURNED_BYTES", turned_bytes)
    stream = sampler(dataset)
    index = stream.index(3, 5)
    batch = stream.gather(index)
    examples = dataset.examples.numpy()
    assert int(index.rotation.max()) > 0
    for b in range(5):
        for position, slot in enumerate(index.support_order[b].tolist()):
            label, shot = divmod(slot, SHAPE.shot)
            expected = np.rot90(
                examples[index.support_index[b, label, shot]], int(index.rotation[b, label]), axes=(-2, -1)
            )
            assert int(batch.support_y[b, position]) == label
            assert np.array_equal(batch.support_x[b, position].numpy(), expected)
        for position, label in enumerate(batch.query_y[b].tolist()):
            row = index.query_index[b, label, position - label * SHAPE.query]
            expected = np.rot90(examples[row], int(index.rotation[b, label]), axes=(-2, -1))
            assert np.array_equal(batch.query_x[b, position].numpy(), expected)


def test_a_batch_is_contiguous_bytes(dataset: EpisodeDataset) -> None:
    batch = sampler(dataset).batch(0, 4)
    assert batch.support_x.shape == (4, 6, 1, 12, 12)
    assert batch.query_x.shape == (4, 12, 1, 12, 12)
    assert batch.support_x.dtype == torch.uint8
    assert batch.support_x.is_contiguous()
    assert batch.query_x.is_contiguous()
    assert (batch.support_y.shape, batch.query_y.shape) == ((4, 6), (4, 12))


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_rotate_is_numpy_rot90(turn: int) -> None:
    x = torch.arange(2 * 3 * 2 * 5 * 5).view(2, 3, 2, 5, 5)
    turned = rotate(x, torch.tensor([[turn, 0, turn]]))
    assert np.array_equal(turned[:, 0].numpy(), np.rot90(x[:, 0].numpy(), turn, axes=(-2, -1)))
    assert torch.equal(turned[:, 1], x[:, 1])


def test_drawing_leaves_the_examples_as_they_are(dataset: EpisodeDataset) -> None:
    before = dataset.examples.clone()
    sampler(dataset).batch(0, 20)
    assert torch.equal(before, dataset.examples)


def test_too_large_a_way_is_said_before_anything_is_drawn(dataset: EpisodeDataset) -> None:
    classes = len(class_table(dataset, "test")[0])
    with pytest.raises(UsageError, match=f"way 40: the test split has {classes} classes"):
        sampler(dataset, EpisodeShape(40, 1, 1), split="test")


def test_a_class_with_too_few_examples_is_named(dataset: EpisodeDataset) -> None:
    with pytest.raises(UsageError, match=r"class 'domain\d/class0' .* has 8 examples, shot 5 \+ query 4 need 9"):
        sampler(dataset, EpisodeShape(2, 5, 4))


def test_an_unknown_domain_is_said(dataset: EpisodeDataset) -> None:
    with pytest.raises(UsageError, match="unknown domain in the train split 'nowhere'"):
        EpisodeSampler(dataset, "train", SHAPE, seed=0, domain="nowhere")


@pytest.mark.parametrize(("way", "shot", "query"), [(0, 1, 1), (5, 0, 1), (5, 1, -3)])
def test_shapes_that_are_none_are_refused(way: int, shot: int, query: int) -> None:
    with pytest.raises(UsageError, match="must be at least"):
        EpisodeShape(way, shot, query)


def test_a_single_class_is_no_episode(dataset: EpisodeDataset) -> None:
    with pytest.raises(UsageError, match="way must be at least 2, got 1"):
        sampler(dataset, EpisodeShape(1, 1, 1))


def test_an_epoch_of_examples_shows_each_once(dataset: EpisodeDataset) -> None:
    class_id, rotation = class_table(dataset, "train")
    total = int(dataset.class_count[class_id].sum())
    stream = ExampleSampler(dataset, "train", seed=1, batch_size=total)
    x, y = stream.batch(0)
    assert torch.equal(torch.bincount(y), dataset.class_count[class_id])
    shown = sorted((int(label), picture.numpy().tobytes()) for picture, label in zip(x, y, strict=True))
    expected = sorted(
        (label, np.rot90(dataset.examples[row].numpy(), int(turn), axes=(-2, -1)).tobytes())
        for label, (c, turn) in enumerate(zip(class_id, rotation, strict=True))
        for row in range(int(dataset.class_offset[c]), int(dataset.class_offset[c] + dataset.class_count[c]))
    )
    assert shown == expected


def test_example_batches_do_not_depend_on_what_came_before(dataset: EpisodeDataset) -> None:
    stream = ExampleSampler(dataset, "train", seed=1, batch_size=100)
    in_turn = [stream.batch(number) for number in range(9)]
    for number in (8, 3, 5):
        x, y = ExampleSampler(dataset, "train", seed=1, batch_size=100).batch(number)
        assert len(y) == 100
        assert torch.equal(x, in_turn[number][0])
        assert torch.equal(y, in_turn[number][1])


def by_hand(dataset: EpisodeDataset, shape: EpisodeShape, seed: int, number: int) -> dict[str, list[int]]:
    """Draw one episode of fixed shape in Python's own integers, as every version has drawn it: SplitMix64 and Floyd."""
    mask = 2**64 - 1

    def mixed(word: int) -> int:
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
        return word ^ word >> 31

    def word_of(key: int, place: int) -> int:
        return mixed(key + (place + 1) * 0x9E3779B97F4A7C15 & mask)

    def drawn(words: list[int], order: list[int], population: int) -> list[int]:
        found: list[int] = []
        for last, word in enumerate(words, population - len(words)):
            pick = (word >> 32) * (last + 1) >> 32
            found.append(last if pick in found else pick)
        return [value for _, value in sorted(zip(signed(order), found, strict=True), key=lambda pair: pair[0])]

    def signed(words: list[int]) -> list[int]:
        return [word - 2**64 if word >> 63 else word for word in words]

    way, shot, query = shape.way, shape.shot, shape.query
    parts = ["episodes", dataset.digest, "train", [way, shot, query], seed, None]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    episode = word_of(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"), number)
    stream = (word_of(episode, place) for place in itertools.count())
    each = shot + query
    pick_class, order_class = ([next(stream) for _ in range(way)] for _ in range(2))
    pick, order = ([[next(stream) for _ in range(each)] for _ in range(way)] for _ in range(2))
    table = [(entry.id, turn) for entry in dataset.manifest.of_split("train") for turn in entry.rotations]
    classes = [table[place] for place in drawn(pick_class, order_class, len(table))]
    examples = [
        [int(dataset.class_offset[number]) + place for place in drawn(*words, int(dataset.class_count[number]))]
        for words, (number, _) in zip(zip(pick, order, strict=True), classes, strict=True)
    ]
    support_order = signed([next(stream) for _ in range(way * shot)])
    return {
        "class_id": [number for number, _ in classes],
        "rotation": [turn for _, turn in classes],
        "support_index": [row for rows in examples for row in rows[:shot]],
        "query_index": [row for rows in examples for row in rows[shot:]],
        "support_order": sorted(range(way * shot), key=support_order.__getitem__),
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(shape=shapes, seed=st.integers(0, 9), number=st.integers(0, 10**6))
def test_episodes_of_fixed_shape_are_what_they_have_always_been(
    dataset: EpisodeDataset, shape: EpisodeShape, seed: int, number: int
) -> None:
    index = sampler(dataset, shape, seed).index(number, 1)
    assert {name: getattr(index, name).flatten().tolist() for name in by_hand(dataset, shape, seed, number)} == by_hand(
        dataset, shape, seed, number
    )
