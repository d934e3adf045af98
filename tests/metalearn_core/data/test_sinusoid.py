import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sinusoid import SinusoidSampler, SinusoidTasks
from metalearn_core.data.tasks import open_tasks, stream_of
from metalearn_core.errors import UsageError

TASKS = SinusoidTasks()


def sampler(shot: int = 10, query: int = 5, seed: int = 0, split: str = "train") -> SinusoidSampler:
    return SinusoidSampler(TASKS, split, EpisodeShape(1, shot, query), seed=seed)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(first=st.integers(0, 10**9), count=st.integers(1, 6), shot=st.integers(1, 12), query=st.integers(1, 12))
def test_a_batch_is_its_episodes_one_by_one(first: int, count: int, shot: int, query: int) -> None:
    batch = sampler(shot, query).batch(first, count)
    for i in range(count):
        alone = sampler(shot, query).batch(first + i, 1)
        assert all(torch.equal(value, batch[i : i + 1].tensors()[name]) for name, value in alone.tensors().items())
    assert batch.way == 1
    assert (batch.support_x.shape, batch.query_y.shape) == ((count, shot, 1), (count, query, 1))


def test_points_lie_on_the_curve_of_their_episode() -> None:
    stream = sampler()
    (amplitude, phase), batch = stream.curves(7, 50), stream.batch(7, 50)
    x = torch.cat([batch.support_x, batch.query_x], dim=1)[..., 0].numpy().astype(np.float64)
    y = torch.cat([batch.support_y, batch.query_y], dim=1)[..., 0].numpy()
    expected = amplitude.numpy()[:, None] * np.sin(x - phase.numpy()[:, None])
    np.testing.assert_allclose(y, expected, atol=3e-6)


def test_amplitudes_phases_and_points_are_uniform() -> None:
    stream = sampler(4, 4)
    amplitude, phase = (values.numpy() for values in stream.curves(0, 4000))
    x = stream.batch(0, 1000).support_x.flatten().numpy()
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, np.pi), (x, -5.0, 5.0)):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_seeds_splits_and_shapes_are_streams_of_their_own() -> None:
    streams = [sampler(), sampler(seed=1), sampler(split="test"), sampler(9, 6)]
    assert len({stream.key for stream in streams}) == len(streams)
    first = [stream.curves(0, 1)[0].item() for stream in streams]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("shape", [EpisodeShape(5, 1, 1), EpisodeShape(1, 5, 1, min_shot=2)])
def test_a_shape_that_is_none_of_regression_is_refused(shape: EpisodeShape) -> None:
    with pytest.raises(UsageError, match="sinusoid is regression: it has way 1 and a single number of shots"):
        stream_of(open_tasks("sinusoid"), "train", shape, seed=0)
