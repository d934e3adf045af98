"""A learner's answers over a stream of episodes, counted: by episode, by class, by confusion and by confidence."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metalearn_core import events
from metalearn_core.data.episodes import EpisodeIndex, EpisodeShape
from metalearn_core.data.sampler import QUARTER_TURNS, EpisodeSampler, gather_examples
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.full_precision import full_precision
from metalearn_core.learners.contract import BatchNormMode, Learner
from metalearn_core.learners.embedding import EmbeddingLearner
from metalearn_core.memory import kept_memory
from metalearn_core.resources import available_cores
from metalearn_core.side_by_side import SideBySide

if TYPE_CHECKING:
    from metalearn_core.data.tasks import Stream

CALIBRATION_BINS = 15
EMBEDDED_AT_ONCE = {"cpu": 64, "cuda": 2048}
INDICES_AT_ONCE = 2000
NUMBERS_AT_ONCE = 2**22
FEATURES_AT_ONCE = 250
FEATURE_BYTES_AT_ONCE = 2**25
EPISODES_AT_ONCE = {"cpu": 8, "cuda": 64}
SECONDS_BETWEEN_EVENTS = 0.25


class NoNumbersError(MetalearnError):
    """A learner's answers are no numbers.

    Attributes:
        episode: the number of the first such episode.
    """

    def __init__(self, learner: Learner, episode: int) -> None:
        self.episode = episode
        super().__init__(
            f"{learner.info.name}: its answers in episode {episode} are no numbers: its training diverged, "
            "lower its learning rates"
        )


@dataclass(frozen=True)
class EpisodeScores:
    """What came of n episodes. A class is numbered 4 · (its id) + (its quarter turns).

    Attributes:
        accuracy: (n,) float64, share of the queries that were classified right.
        loss: (n,) float64, mean cross-entropy of the queries.
        classes: (n, way) int64, the class of each column; −1 where an episode has fewer.
        queries: (n, way) int64, queries of each class.
        correct: (n, way) int64, right answers among them.
        confused: (k, 2) int64, true and predicted class of every wrong answer.
        calibration: (3, bins) float64: queries, their confidences and right answers, summed by confidence.
    """

    accuracy: NDArray[np.float64]
    loss: NDArray[np.float64]
    classes: NDArray[np.int64]
    queries: NDArray[np.int64]
    correct: NDArray[np.int64]
    confused: NDArray[np.int64]
    calibration: NDArray[np.float64]

    @property
    def chance(self) -> float:
        """The accuracy of guessing: one by the number of classes, averaged over episodes."""
        return float((1 / (self.classes >= 0).sum(axis=1)).mean())


class Progress:
    """Counts episodes over several streams, and tells of it at most four times a second."""

    def __init__(self, step: str, total: int) -> None:
        self._step, self._total, self._done, self._told = step, total, 0, 0.0

    def __call__(self, episodes: int) -> None:
        """Count `episodes` more."""
        self._done += episodes
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN_EVENTS or self._done >= self._total:
            self._told = now
            text = f"{self._done:,} of {self._total:,} episodes"
            events.emit("progress", self._step, done=self._done, total=self._total, text=text)


class Scorer:
    """Scores streams of episodes of one dataset with one learner; a context manager that puts the learner back.

    An `EmbeddingLearner` in inductive mode embeds each image once, for all streams: an episode is then a gather and a
    small matrix product. Other learners get their episodes whole. On a CPU the work is cut into pieces of fixed size,
    which run side by side on one thread each: quicker than threads inside each operation, the more so on a busy
    machine, and the numbers do not depend on how many threads there are. On a GPU fp32 is fp32, and not TF32.

    Args:
        learner: in evaluation mode inside the block, in the batch-norm mode that is asked for.
        batch_norm: inductive or transductive.
        progress: told of episodes as they are done (none, while images are embedded); may raise, to stop.

    Raises:
        UsageError: the learner has no transductive mode.
    """

    def __init__(
        self,
        learner: Learner,
        batch_norm: BatchNormMode = "inductive",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if batch_norm == "transductive" and not learner.info.transductive:
            raise UsageError(f"batch_norm: {learner.info.name} is always inductive, got transductive")
        self._learner, self._batch_norm = learner, batch_norm
        self._progress = progress or (lambda _: None)
        self._embed_once = batch_norm == "inductive" and isinstance(learner, EmbeddingLearner)
        self._table: FeatureTable | None = None

    def __enter__(self) -> "Scorer":
        self._before = self._learner.training, self._learner.batch_norm
        self._learner.eval()
        self._learner.batch_norm = self._batch_norm
        on_cpu = self._learner.mean.device.type == "cpu"
        self._inside = ExitStack()
        self._inside.enter_context(kept_memory())
        self._inside.enter_context(full_precision())
        self._side_by_side = self._inside.enter_context(SideBySide(available_cores() if on_cpu else 0))
        return self

    def __exit__(self, *raised: Any) -> None:
        self._inside.__exit__(*raised)  # it makes a difference why it is left
        training, self._learner.batch_norm = self._before
        self._learner.train(training)
        self._table = None

    def score(self, sampler: EpisodeSampler, episodes: int) -> EpisodeScores:
        """Score the first `episodes` episodes of a stream.

        Raises:
            NoNumbersError: an answer is no number.
        """
        parts = []
        scored = self._by_feature(sampler, episodes) if self._embed_once else self._by_episode(sampler, episodes)
        with self._in_memory():
            for part in scored:
                parts.append(part)
                self._progress(len(part.accuracy))
        return _joined(parts)

    @contextmanager
    def _in_memory(self) -> Iterator[None]:
        """Name what helps where a GPU's memory does not hold what is done inside the block."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise MetalearnError(
                f"{self._learner.info.name}: the GPU's memory does not hold its evaluation: take a smaller --way or "
                "--query, or --device cpu"
            ) from None

    def squared_errors(self, stream: "Stream", episodes: int) -> NDArray[np.float64]:
        """Return the squared errors (n,) of the first `episodes` regressions of a stream, each averaged over queries.

        Raises:
            NoNumbersError: an answer is no number.
        """
        device, at_once = self._learner.mean.device, self._episodes_at_once(stream.shape)

        def errors(first: int) -> NDArray[np.float64]:
            batch = stream.batch(first, min(at_once, episodes - first)).to(device)
            with torch.no_grad():
                squares = (self._learner(batch).double() - batch.query_y.double()).square().flatten(1).mean(dim=1)
            if not bool(squares.isfinite().all()):
                raise NoNumbersError(self._learner, first + int((~squares.isfinite()).nonzero()[0]))
            found: NDArray[np.float64] = squares.cpu().numpy()
            return found

        parts = []
        with self._in_memory():
            for part in self._side_by_side.map(errors, range(0, episodes, at_once)):
                parts.append(part)
                self._progress(len(part))
        return np.concatenate(parts)

    def _episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return how many episodes a piece of work has: the more, the less each of them is."""
        least = EPISODES_AT_ONCE[self._learner.mean.device.type]
        return max(least, min(EPISODES_AT_ONCE["cuda"], self._learner.episodes_at_once(shape)))

    def _by_feature(self, sampler: EpisodeSampler, episodes: int) -> Iterator[EpisodeScores]:
        learner, shape = self._learner, sampler.room
        assert isinstance(learner, EmbeddingLearner)
        if self._table is None:
            self._table = FeatureTable(learner, sampler, self._side_by_side, lambda: self._progress(0))
        table = self._table
        device = learner.mean.device
        examples = shape.support_size + shape.way * shape.query
        bytes_an_episode = 4 * examples * learner.backbone.feature_size
        at_once = max(1, min(FEATURES_AT_ONCE, FEATURE_BYTES_AT_ONCE // bytes_an_episode))
        indices_at_once = max(
            at_once, min(INDICES_AT_ONCE, NUMBERS_AT_ONCE // (shape.way * (shape.shot + shape.query)))
        )

        def scored(start: int) -> EpisodeScores:
            episodes = index[start : start + at_once]
            rows = slice(start, start + at_once)
            mask = episodes.support_mask
            with torch.no_grad():
                state = learner.adapt_features(
                    table.features[support[rows]],
                    episodes.support_y.to(device),
                    way=shape.way,
                    support_mask=None if mask is None else mask.to(device),
                )
                logits = learner.predict_features(state, table.features[query[rows]])
            return _scored(logits, episodes, first + start, learner)

        for first in range(0, episodes, indices_at_once):
            index = sampler.index(first, min(indices_at_once, episodes - first))
            support, query = table.places(index)
            yield from self._side_by_side.map(scored, range(0, len(index), at_once))

    def _by_episode(self, sampler: EpisodeSampler, episodes: int) -> Iterator[EpisodeScores]:
        device, at_once = self._learner.mean.device, self._episodes_at_once(sampler.room)

        def scored(first: int) -> EpisodeScores:
            index = sampler.index(first, min(at_once, episodes - first))
            batch = sampler.gather(index).to(device)
            with torch.no_grad():
                logits = self._learner(batch)
            return _scored(logits, index, first, self._learner)

        yield from self._side_by_side.map(scored, range(0, episodes, at_once))


class FeatureTable:
    """The features of the examples that episodes have used so far, each embedded once.

    Attributes:
        features: (rows, d).
    """

    def __init__(
        self, learner: EmbeddingLearner, sampler: EpisodeSampler, side_by_side: SideBySide, pause: Callable[[], None]
    ) -> None:
        self._learner, self._device, self._side_by_side, self._pause = learner, sampler.device, side_by_side, pause
        self._examples = sampler.dataset.on(sampler.device)
        self._place = torch.full((QUARTER_TURNS * len(self._examples),), -1, device=sampler.device)
        self.features = torch.empty(0, device=learner.mean.device)

    def places(self, index: EpisodeIndex) -> tuple[Tensor, Tensor]:
        """Return rows of `features`: the support sets (b, way·shot), in their order, and the queries (b, way·query)."""
        turns = index.rotation.unsqueeze(-1)
        support = (index.support_index * QUARTER_TURNS + turns).flatten(1).gather(1, index.support_order)
        query = (index.query_index * QUARTER_TURNS + turns).flatten(1)
        used = torch.zeros_like(self._place, dtype=torch.bool)
        used[support] = True
        used[query] = True
        new = (used & (self._place < 0)).nonzero().squeeze(1)
        if len(new):
            self._place[new] = torch.arange(len(new), device=self._device) + len(self.features)
            chunks = torch.split(new, EMBEDDED_AT_ONCE[self.features.device.type])
            parts = []
            for part in self._side_by_side.map(self._embedded, chunks):
                parts.append(part)
                self._pause()
            features = torch.cat(parts)
            self.features = torch.cat([self.features, features]) if len(self.features) else features
        return self._place[support].to(self.features.device), self._place[query].to(self.features.device)

    def _embedded(self, codes: Tensor) -> Tensor:
        turns = codes % QUARTER_TURNS
        with torch.no_grad():
            x = gather_examples(self._examples, codes // QUARTER_TURNS, turns if bool(turns.any()) else None)
            return self._learner.embed(x.to(self.features.device))


def evaluate_episodes(
    learner: Learner, sampler: EpisodeSampler, episodes: int, batch_norm: BatchNormMode = "inductive"
) -> EpisodeScores:
    """Score the first `episodes` episodes of a stream.

    Raises:
        UsageError: the learner has no transductive mode.
        NoNumbersError: an answer is no number.
    """
    with Scorer(learner, batch_norm) as scorer:
        return scorer.score(sampler, episodes)


def _scored(logits: Tensor, index: EpisodeIndex, first: int, learner: Learner) -> EpisodeScores:
    """Count the answers (b, q, way) to the queries of b episodes, of which `first` is the number of the first."""
    device = logits.device
    labels, queries = index.query_y.to(device), index.queries.to(device)
    classes = (index.class_id * QUARTER_TURNS + index.rotation).masked_fill(index.class_id < 0, -1).to(device)
    asked = torch.ones_like(labels, dtype=torch.bool) if index.query_mask is None else index.query_mask.to(device)
    likelihood = logits.double().log_softmax(dim=-1)
    if bool((likelihood.isnan() & asked.unsqueeze(-1)).any()):
        unanswered = (likelihood.isnan().any(dim=-1) & asked).any(dim=1)
        raise NoNumbersError(learner, first + int(unanswered.nonzero()[0]))
    confidence, predicted = likelihood.exp().max(dim=-1)
    right = (predicted == labels) & asked
    wrong = (predicted != labels) & asked
    loss = F.nll_loss(likelihood.flatten(0, 1), labels.flatten(), reduction="none").view_as(confidence)
    count = queries.sum(dim=1)
    by_class = torch.zeros_like(classes).scatter_add_(1, labels, right.long())
    confused = torch.stack([classes.gather(1, labels)[wrong], classes.gather(1, predicted)[wrong]], dim=1)
    bins = (confidence[asked] * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    weights = torch.ones_like(confidence), confidence, right.double()
    calibration = [torch.bincount(bins, weight[asked], minlength=CALIBRATION_BINS) for weight in weights]
    return EpisodeScores(
        accuracy=(right.double().sum(dim=1) / count).cpu().numpy(),
        loss=(loss.where(asked, 0.0).sum(dim=1) / count).cpu().numpy(),
        classes=classes.cpu().numpy(),
        queries=queries.cpu().numpy(),
        correct=by_class.cpu().numpy(),
        confused=confused.cpu().numpy(),
        calibration=torch.stack(calibration).cpu().numpy(),
    )


def _joined(parts: list[EpisodeScores]) -> EpisodeScores:
    """Return the scores of consecutive episodes as one."""
    names = [field.name for field in fields(EpisodeScores)]
    values = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names if name != "calibration"}
    return EpisodeScores(**values, calibration=np.sum([part.calibration for part in parts], axis=0))
