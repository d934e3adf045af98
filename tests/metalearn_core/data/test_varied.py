"""Episodes whose way and shot vary, against Meta-Dataset's rules written anew in numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeIndex, EpisodeShape
from metalearn_core.data.manifest import ClassEntry, DatasetSpec, Manifest
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.data.varied import draw_counts
from metalearn_core.errors import UsageError

COUNTS = [3, 9, 40, 150, 12, 7, 600, 25, 30, 5, 80, 11, 200, 6, 18, 2, 65, 33, 4, 21]
DOMAINS = ["a"] * 7 + ["b"] * 10 + ["c"] * 3

shapes = st.builds(
    lambda way, shot, query: EpisodeShape(way[1], shot, query, way[0], 1),
    st.tuples(st.integers(2, 6), st.integers(6, 30)),
    st.integers(2, 40),
    st.integers(1, 15),
)
often = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12)


@pytest.fixture(scope="module")
def uneven() -> EpisodeDataset:
    """Twenty classes of one number an example, which is its row: from 2 to 600 examples, in three domains."""
    spec = DatasetSpec(
        modality="vector", example_shape=(1,), dtype="float32", mean=(0.0,), std=(1.0,), train_classes=len(COUNTS)
    )
    classes = tuple(
        ClassEntry(
            id=n, name=f"class{n}", domain=domain, split="train", count=count, shard=0, row_group=n, rotations=(0,),
            digest=str(n),
        )
        for n, (count, domain) in enumerate(zip(COUNTS, DOMAINS, strict=True))
    )  # fmt: skip
    manifest = Manifest.model_construct(digest="uneven", spec=spec, classes=classes)
    return EpisodeDataset(Path(), manifest, torch.arange(sum(COUNTS), dtype=torch.float32).unsqueeze(1))


def rows_of(index: EpisodeIndex, episode: int) -> dict[int, tuple[list[int], list[int]]]:
    """Return the support and query rows of each class of an episode."""
    assert index.support_count is not None and index.query_count is not None
    found = {}
    for column, number in enumerate(index.class_id[episode].tolist()):
        shots, queries = int(index.support_count[episode, column]), int(index.query_count[episode, column])
        if number < 0:
            assert shots == queries == 0
            continue
        found[number] = (
            index.support_index[episode, column, :shots].tolist(),
            index.query_index[episode, column, :queries].tolist(),
        )
    return found


@often
@given(shape=shapes, seed=st.integers(0, 5), first=st.integers(0, 10**9))
def test_an_episode_keeps_to_its_ranges(uneven: EpisodeDataset, shape: EpisodeShape, seed: int, first: int) -> None:
    index = EpisodeSampler(uneven, "train", shape, seed=seed).index(first, 4)
    start = uneven.class_offset
    for episode in range(4):
        classes = rows_of(index, episode)
        least = min(uneven.manifest.classes[number].count for number in classes)
        assert shape.least_way <= len(classes) <= min(shape.way, len(COUNTS))
        for number, (support, query) in classes.items():
            count = COUNTS[number]
            assert len(query) == min(shape.query, least // 2)
            assert 1 <= len(support) <= min(shape.shot, count - len(query))
            both = support + query
            assert len(set(both)) == len(both), "support and query share no example"
            assert all(start[number] <= row < start[number] + count for row in both)
        assert sum(len(support) for support, _ in classes.values()) <= min(500, shape.support_size)


@often
@given(shape=shapes, first=st.integers(0, 10**6), count=st.integers(1, 7), within=st.booleans())
def test_a_batch_is_its_episodes_one_by_one(
    uneven: EpisodeDataset, shape: EpisodeShape, first: int, count: int, within: bool
) -> None:
    def stream() -> EpisodeSampler:
        return EpisodeSampler(uneven, "train", shape, seed=1, within_domain=within)

    index, batch = stream().index(first, count), stream().batch(first, count)
    for i in range(count):
        one, alone = stream().index(first + i, 1), stream().batch(first + i, 1)
        assert all(torch.equal(value, vars(index[i : i + 1])[name]) for name, value in vars(one).items())
        assert all(torch.equal(value, batch[i : i + 1].tensors()[name]) for name, value in alone.tensors().items())


@often
@given(shape=shapes, first=st.integers(0, 10**6))
def test_masks_tell_examples_from_padding(uneven: EpisodeDataset, shape: EpisodeShape, first: int) -> None:
    stream = EpisodeSampler(uneven, "train", shape, seed=2)
    index, batch = stream.index(first, 3), stream.batch(first, 3)
    assert batch.support_mask is not None and batch.query_mask is not None
    for episode in range(3):
        classes = list(rows_of(index, episode).values())
        for x, y, mask, part in (
            (batch.support_x, batch.support_y, batch.support_mask, 0),
            (batch.query_x, batch.query_y, batch.query_mask, 1),
        ):
            kept = mask[episode]
            pairs = zip(x[episode, kept, 0].long().tolist(), y[episode, kept].tolist(), strict=True)
            assert sorted(pairs) == sorted((row, label) for label, both in enumerate(classes) for row in both[part])
            assert not y[episode, ~kept].any()


def test_the_support_set_comes_in_no_order_of_labels(uneven: EpisodeDataset) -> None:
    shape = EpisodeShape(6, 5, 2, min_way=2, min_shot=1)
    batch = EpisodeSampler(uneven, "train", shape, seed=0).batch(0, 400)
    assert batch.support_mask is not None
    first = batch.support_y[:, 0]
    assert len(first.unique()) == 6


def meta_dataset(counts: np.ndarray, shape: EpisodeShape, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return shots and queries of an episode of these classes: equations of section 3.2, with the range's end a cap."""
    query = min(shape.query, counts.min() // 2)
    beta = 1 - generator.random()
    size = min(500, sum(np.ceil(beta * min(shape.shot, count - query)) for count in counts))
    weight = np.exp(generator.uniform(np.log(0.5), np.log(2), len(counts))) * counts
    share = weight / weight.sum()
    shots = np.minimum(np.floor(share * (size - len(counts))) + 1, counts - query)
    return np.minimum(shots, shape.shot), query


def test_ways_and_shots_are_distributed_as_in_meta_dataset(uneven: EpisodeDataset) -> None:
    shape, episodes = EpisodeShape(30, 40, 10, min_way=5, min_shot=1), 800
    stream = EpisodeSampler(uneven, "train", shape, seed=4)
    parts = [stream.index(first, 32) for first in range(0, episodes, 32)]
    class_id = torch.cat([part.class_id for part in parts]).numpy()
    shots = torch.cat([part.support_count for part in parts if part.support_count is not None]).numpy()
    present = class_id >= 0
    ways = present.sum(axis=1)
    generator = np.random.default_rng(0)
    expected_ways, expected_shots, expected_sizes = [], np.zeros(len(COUNTS)), []
    seen = np.zeros(len(COUNTS))
    for _ in range(episodes):
        way = generator.integers(5, min(30, len(COUNTS)) + 1)
        classes = generator.permutation(len(COUNTS))[:way]
        found, _ = meta_dataset(np.array(COUNTS)[classes], shape, generator)
        expected_ways.append(way)
        expected_sizes.append(found.sum())
        np.add.at(expected_shots, classes, found)
        np.add.at(seen, classes, 1)
    histogram = np.bincount(ways, minlength=21)[5:]
    expected = episodes / 16
    assert ((histogram - expected) ** 2 / expected).sum() < 15 + 4 * 30**0.5  # χ² with 15 degrees of freedom
    for values, others in ((ways, expected_ways), (shots.sum(axis=1), expected_sizes)):
        error = np.hypot(np.std(values), np.std(others)) / episodes**0.5
        assert abs(np.mean(values) - np.mean(others)) < 4 * error
    own = np.zeros(len(COUNTS))
    np.add.at(own, class_id[present], shots[present])
    drawn = np.bincount(class_id[present], minlength=len(COUNTS))
    np.testing.assert_allclose(own / drawn, expected_shots / seen, rtol=0.12)


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(2, 900), min_size=2, max_size=12),
    seed=st.integers(0, 2**62),
    most=st.integers(1, 200),
    query=st.integers(1, 12),
)
def test_counts_are_those_of_the_formula_in_floats(counts: list[int], seed: int, most: int, query: int) -> None:
    """The same draws of β and α, put into the paper's equations in fp64, give the same shots but for a floor's edge."""
    words = torch.randint(-(2**62), 2**62, (1, len(counts) + 1), generator=torch.Generator().manual_seed(seed % 2**31))
    shape = EpisodeShape(len(counts), most, query, min_shot=1 if most > 1 else None)
    if shape.min_shot is None:
        return
    shots, queries = draw_counts(words[:, 0], words[:, 1:], torch.tensor([counts]), shape)
    upper = [(int(word) >> 32) & 0xFFFFFFFF for word in words[0]]
    beta = ((upper[0] * 2**16 >> 32) + 1) / 2**16
    alpha = np.array([((2 * (value * 2**12 >> 32) + 1) / 2**12 - 1) * np.log(2) for value in upper[1:]])
    n, q = np.array(counts), min(query, min(counts) // 2)
    size = min(500, sum(np.ceil(beta * np.minimum(most, n - q))))
    share = np.exp(alpha) * n / (np.exp(alpha) * n).sum()
    exact = np.minimum(share * (size - len(n)) + 1, np.minimum(most, n - q))
    assert int(queries[0]) == q
    assert np.all(np.abs(shots[0].numpy() - np.floor(exact)) <= (np.abs(exact - np.rint(exact)) < 1e-2))


def test_shots_alone_may_vary_and_ways_alone(uneven: EpisodeDataset) -> None:
    shots = EpisodeSampler(uneven, "train", EpisodeShape(5, 8, 2, min_shot=1), seed=0).index(0, 50)
    assert bool((shots.class_id >= 0).all())
    assert shots.support_count is not None and len(shots.support_count.unique()) > 4
    with pytest.raises(UsageError, match="has 2 examples, shot 2 "):
        EpisodeSampler(uneven, "train", EpisodeShape(6, 2, 2, min_way=3), seed=0)
    ways = EpisodeSampler(uneven, "train", EpisodeShape(6, 1, 1, min_way=3), seed=0).index(0, 50)
    assert ways.support_count is not None
    assert set(ways.support_count.flatten().tolist()) == {0, 1}
    assert set((ways.class_id >= 0).sum(dim=1).tolist()) == {3, 4, 5, 6}


def test_a_least_shot_is_kept(uneven: EpisodeDataset) -> None:
    for seed in range(5):
        words = torch.randint(-(2**62), 2**62, (200, 5), generator=torch.Generator().manual_seed(seed))
        counts = torch.randint(4, 40, (200, 4), generator=torch.Generator().manual_seed(seed))
        shots, queries = draw_counts(words[:, 0], words[:, 1:], counts, EpisodeShape(4, 9, 6, min_shot=3))
        assert int(shots.min()) == 3 and int(shots.max()) == 9
        assert torch.equal(queries, torch.minimum(counts.amin(1) // 2, counts.amin(1) - 3).clamp(max=6))
        assert bool((shots + queries.unsqueeze(1) <= counts).all())
    with pytest.raises(UsageError, match=r"class 'class15' .* has 2 examples, shot 3-9 \+ query 1 need 4"):
        EpisodeSampler(uneven, "train", EpisodeShape(5, 9, 6, min_shot=3), seed=0)


def test_a_way_above_the_classes_is_capped_but_not_the_least(uneven: EpisodeDataset) -> None:
    index = EpisodeSampler(uneven, "train", EpisodeShape(90, 2, 1, min_way=18, min_shot=1), seed=0).index(0, 60)
    assert set((index.class_id >= 0).sum(dim=1).tolist()) == {18, 19, 20}
    with pytest.raises(UsageError, match="way 21-90: the train split has 20 classes"):
        EpisodeSampler(uneven, "train", EpisodeShape(90, 2, 1, min_way=21, min_shot=1), seed=0)


def test_episodes_have_room_for_the_classes_and_examples_that_there_are_however_many_are_asked_for(
    uneven: EpisodeDataset,
) -> None:
    stream = EpisodeSampler(uneven, "train", EpisodeShape.of("5-1000000", "1-90000", 100_000), seed=0)
    index, batch = stream.index(0, 3), stream.batch(0, 3)
    assert index.class_id.shape == (3, len(COUNTS))
    assert index.support_index.shape == (3, len(COUNTS), max(COUNTS) - 1)
    assert index.query_index.shape == (3, len(COUNTS), max(COUNTS) // 2)
    assert (batch.way, batch.support_x.shape[1]) == (len(COUNTS), 500)
    domain = EpisodeSampler(uneven, "train", EpisodeShape.of("2-5000", 1, 1), seed=0, domain="c").batch(0, 3)
    assert (domain.way, domain.support_x.shape[1], domain.query_x.shape[1]) == (3, 3, 3)
    within = EpisodeSampler(uneven, "train", EpisodeShape.of("2-5000", 1, 1), seed=0, within_domain=True)
    assert within.batch(0, 3).way == DOMAINS.count("b")


@pytest.mark.parametrize("shape", [EpisodeShape(4, 1, 1), EpisodeShape(9, 3, 2, min_way=4, min_shot=1)])
def test_within_a_domain_each_domain_comes_as_often_and_small_ones_never(
    uneven: EpisodeDataset, shape: EpisodeShape
) -> None:
    stream = EpisodeSampler(uneven, "train", shape, seed=0, within_domain=True)
    assert stream.left_out == ("c",)
    index = stream.index(0, 2000)
    domains = [
        {uneven.manifest.classes[number].domain for number in row if number >= 0} for row in index.class_id.tolist()
    ]
    assert all(len(found) == 1 for found in domains)
    share = sum(found == {"a"} for found in domains) / 2000
    assert abs(share - 0.5) < 4 * 0.5 / 2000**0.5
    ways = (index.class_id >= 0).sum(dim=1)
    own = {int(way) for way, found in zip(ways, domains, strict=True) if found == {"a"}}
    assert own == ({4} if not shape.varied else {4, 5, 6, 7})
    with pytest.raises(UsageError, match="no domain of the train split has so many classes, the largest has 10"):
        EpisodeSampler(uneven, "train", EpisodeShape(11, 1, 1), seed=0, within_domain=True)


def test_every_way_of_drawing_names_another_stream(uneven: EpisodeDataset) -> None:
    fixed, varied = EpisodeShape(4, 1, 1), EpisodeShape(4, 1, 1, min_way=3)
    streams = [
        EpisodeSampler(uneven, "train", fixed, seed=0),
        EpisodeSampler(uneven, "train", varied, seed=0),
        EpisodeSampler(uneven, "train", EpisodeShape(4, 1, 1, min_way=2), seed=0),
        EpisodeSampler(uneven, "train", fixed, seed=0, within_domain=True),
        EpisodeSampler(uneven, "train", fixed, seed=0, domain="a"),
    ]
    assert len({stream.key for stream in streams}) == len(streams)
