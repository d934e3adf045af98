"""Promises of `adapt` and `predict`: what logits look like, and what they depend on."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import BatchNormMode, Learner, Outcome
from metalearn_core.learners.embedding import EmbeddingLearner
from metalearn_core.testing.promises import Promise, promise, require, require_close, require_refused
from metalearn_core.testing.subject import QUERY, SHOT, TARGET_SIZE, WAY, Subject, gradients, train

PROMISES: list[Promise] = []
_JUNK = float("nan")  # what padding is filled with: examples, and real targets
_SHOTS = (1, 5)
_ASKED = 15  # queries per class, so many that one that decides otherwise does so for some of them
_BF16_TOLERANCE = 0.1  # of the largest logit


def _classes(subject: Subject) -> bool:
    return subject.target == "class"


def _one_shot_and_five(subject: Subject) -> bool:
    return subject.info.variable_shape or "shot" in subject.kind.Config.model_fields


def _built_for(subject: Subject, shot: int) -> dict[str, Any]:
    """Return the options of a learner for episodes of some shot: one that is built for a shot has it as an option."""
    return {"shot": shot} if "shot" in subject.kind.Config.model_fields else {}


def _modes(subject: Subject) -> list[BatchNormMode]:
    return ["inductive", "transductive"] if subject.info.transductive else ["inductive"]


@promise(PROMISES)
def logits_have_a_row_a_query_and_a_column_a_class(subject: Subject) -> None:
    """Adapt gives tensors with a row an episode; predict gives finite logits (b, q, way), or real targets (b, q, d)."""
    learner, episodes = subject.make(), subject.episodes(3)
    state = learner.adapt(episodes.support_x, episodes.support_y, way=subject.way)
    for name, value in state.items():
        require(isinstance(value, Tensor), f"state[{name!r}] is a {type(value).__name__}, not a tensor")
        require(value.dim() > 0 and len(value) == 3, f"state[{name!r}] of 3 episodes has shape {tuple(value.shape)}")
    logits = learner.predict(state, episodes.query_x)
    wanted = (3, WAY * QUERY, WAY if _classes(subject) else TARGET_SIZE)
    require(logits.shape == wanted, f"shape {tuple(logits.shape)}, not {wanted}")
    require(logits.dtype == episodes.query_x.dtype, f"{logits.dtype} from weights and examples of torch.float64")
    require(bool(logits.isfinite().all()), "logits that are not finite, every class having support")
    require_close(learner(episodes), logits, "forward against predict after adapt")


@promise(PROMISES, lambda subject: _classes(subject) and not subject.info.fixed_way)
def any_way_is_taken(subject: Subject) -> None:
    """A learner whose way is not fixed takes episodes of any number of classes."""
    learner = subject.make()
    for way in (2, 3, 6):
        logits = learner(subject.episodes(2, way=way))
        require(logits.shape == (2, way * QUERY, way), f"{way}-way logits of shape {tuple(logits.shape)}")


@promise(PROMISES, lambda subject: _classes(subject) and subject.info.fixed_way)
def another_way_is_refused(subject: Subject) -> None:
    """A learner of fixed way raises a UsageError that names both ways when it gets episodes of another one."""
    episodes, learner = subject.episodes(2, way=WAY + 1), subject.make()
    for take in (learner, learner.train_episodes) if subject.trains_on_episodes else (learner,):
        learner.train(take is not learner)
        try:
            take(episodes)
        except UsageError as error:
            named = str(WAY) in str(error) and str(WAY + 1) in str(error)
            require(named, f"a UsageError that does not name {WAY} and {WAY + 1}: {error}")
        else:
            require(False, f"made for {WAY} classes, it took {WAY + 1}")


@promise(PROMISES, _one_shot_and_five)
def one_shot_and_five_are_taken(subject: Subject) -> None:
    """A learner takes support sets of one example a class, and of five.

    (One that is built for a shot has it as the option `shot`.)
    """
    for shot in _SHOTS:
        episodes = subject.episodes(2, shot=shot)
        for training in (False, True):
            learner = subject.make(**_built_for(subject, shot)).train(training)
            what = f"{shot}-shot logits (training: {training})"
            logits = learner(episodes)
            require(bool(logits.isfinite().all()), f"{what} that are not finite")
            alone = torch.cat([learner(episodes[number : number + 1]) for number in range(2)])
            require_close(logits, alone, f"{what} in a batch of 2 against alone")


@promise(PROMISES)
def episodes_in_a_batch_are_independent(subject: Subject) -> None:
    """What an episode gets, in training and in evaluation, does not depend on the other episodes of its batch."""
    episodes = subject.episodes(3)
    for training in (False, True):
        learner = subject.make().train(training)
        alone = torch.cat([learner(episodes[number : number + 1]) for number in range(3)])
        require_close(learner(episodes), alone, f"logits in a batch of 3 against alone (training: {training})")
        if subject.trains_on_episodes:
            outcomes = [learner.train_episodes(episodes[number : number + 1]) for number in range(3)]
            _require_alike(learner.train_episodes(episodes), outcomes, f"in a batch of 3 (training: {training})")


@promise(PROMISES)
def a_query_alone_gets_the_same_logits(subject: Subject) -> None:
    """In inductive mode a query's logits do not depend on the other queries."""
    learner, episodes = subject.make(), subject.episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=subject.way)
    alone = torch.cat([learner.predict(state, x) for x in torch.split(episodes.query_x, 1, dim=1)], dim=1)
    require_close(alone, learner.predict(state, episodes.query_x), "logits of queries alone against together")


@promise(PROMISES, lambda subject: subject.info.order_invariant)
def the_order_of_the_support_set_does_not_matter(subject: Subject) -> None:
    """A learner that declares `order_invariant` gives the same logits whatever the order of the support set."""
    learner, episodes = subject.make(), subject.episodes()
    order = torch.randperm(WAY * SHOT, generator=torch.Generator().manual_seed(3))
    shuffled = replace(episodes, support_x=episodes.support_x[:, order], support_y=episodes.support_y[:, order])
    require_close(learner(shuffled), learner(episodes), "logits after another order of the support set")


@promise(PROMISES, lambda subject: _classes(subject) and bool(subject.info.label_equivariant))
def renaming_the_classes_renames_the_columns(subject: Subject) -> None:
    """A learner that declares `label_equivariant` gives the same columns in another order when classes are renumbered.

    By default that is what a learner of any way promises; one of fixed way may have a preference that it learned.
    """
    learner, episodes = subject.make(), subject.episodes()
    renamed = torch.tensor([2, 0, 3, 1])
    logits = learner(replace(episodes, support_y=renamed[episodes.support_y]))
    require_close(logits[:, :, renamed], learner(episodes), "logits after renumbering the classes")


@promise(PROMISES, lambda subject: subject.info.variable_shape)
def padding_is_as_if_it_were_not_there(subject: Subject) -> None:
    """Masked out is as if not there: episodes of several ways and shots, padded to one batch, get what they get alone.

    Logits, losses, their gradients, accuracies and statistics do, in training and evaluation, in every batch-norm mode
    that the learner has, and if the padding is no number.
    """
    short = [_kept(subject, number) for number in range(3)]
    padded = _padded(subject, short)
    for training in (False, True):
        for mode in _modes(subject):
            learner = subject.make().train(training)
            learner.batch_norm = mode
            logits, what = learner(padded), f"{mode}, training: {training}"
            for number, episode in enumerate(short):
                size = episode.query_x.shape[1]
                require_close(logits[number, None, :size], learner(episode), f"logits of episode {number} ({what})")
            if subject.trains_on_episodes:
                alone, together = [learner.train_episodes(episode) for episode in short], learner.train_episodes(padded)
                _require_alike(together, alone, f"under masks ({what})")
                _require_same_gradients(learner, together, alone, f"under masks ({what})")


def _require_alike(found: Outcome, alone: list[Outcome], what: str) -> None:
    """Raise where what episodes gave in a batch is not what each of them gives alone."""
    require_close(found.losses, torch.cat([one.losses for one in alone]), f"outer losses {what} against alone")
    require_close(found.accuracies, torch.cat([one.accuracies for one in alone]), f"accuracies {what} against alone")
    for name in sorted({name for one in (found, *alone) for name in one.statistics}):
        values = torch.cat([one.statistics[name] for one in alone])
        require_close(found.statistics[name], values, f"statistics {name} {what} against alone")


def _require_same_gradients(learner: Learner, found: Outcome, alone: list[Outcome], what: str) -> None:
    """Raise where the gradient of a batch's losses is not the sum of its episodes' own."""
    if not (found.losses.requires_grad and list(learner.parameters())):  # some on `identity` have nothing to learn
        return
    wanted = gradients(learner, torch.cat([one.losses for one in alone]).sum())
    for name, gradient in gradients(learner, found.losses.sum()).items():
        require_close(gradient, wanted[name], f"gradient of {name} {what} against alone")


def _kept(subject: Subject, number: int) -> EpisodeBatch:
    """Return episode 0 whole; episode 1 without its last class (or targets); episode 2 with fewer shots and queries."""
    episode = subject.episodes(3)[number : number + 1]
    support, query = episode.support_x.shape[1], episode.query_x.shape[1]
    keep_support, keep_query = torch.ones(support, dtype=torch.bool), torch.ones(query, dtype=torch.bool)
    if number == 1 and _classes(subject):
        keep_support, keep_query = episode.support_y[0] < WAY - 1, episode.query_y[0] < WAY - 1
    elif number > 0:
        keep_query[-number:] = False
        for label in range(WAY) if _classes(subject) else ():
            keep_support[(episode.support_y[0] == label).nonzero()[0]] = label == 0
        if not _classes(subject):
            keep_support[-2 * number :] = False
    return replace(
        episode,
        support_x=episode.support_x[:, keep_support],
        support_y=episode.support_y[:, keep_support],
        query_x=episode.query_x[:, keep_query],
        query_y=episode.query_y[:, keep_query],
    )


def _padded(subject: Subject, episodes: list[EpisodeBatch]) -> EpisodeBatch:
    """Return the episodes as one batch, with two rows of padding at least."""

    def joined(name: str) -> tuple[Tensor, Tensor]:
        values = [getattr(episode, name)[0] for episode in episodes]
        size = 2 + max(len(value) for value in values)
        junk = 0 if _is_label(values[0]) else _JUNK
        rows = torch.full((len(values), size, *values[0].shape[1:]), junk, dtype=values[0].dtype)
        for row, value in zip(rows, values, strict=True):
            row[: len(value)] = value
        lengths = torch.tensor([len(value) for value in values])
        return rows, torch.arange(size) < lengths.unsqueeze(1)

    (support_x, support_mask), (query_x, query_mask) = joined("support_x"), joined("query_x")
    return EpisodeBatch(
        way=subject.way,
        support_x=support_x,
        support_y=joined("support_y")[0],
        query_x=query_x,
        query_y=joined("query_y")[0],
        support_mask=support_mask,
        query_mask=query_mask,
    )


def _is_label(values: Tensor) -> bool:
    return not values.is_floating_point()


@promise(PROMISES, _classes)
def a_class_without_support_gets_minus_infinity(subject: Subject) -> None:
    """The logits of a class that no support example has are minus infinity, and those of the others are finite."""
    learner, episodes = subject.make(), subject.episodes()
    others = [label for label in range(WAY) if label != 1]
    logits = learner(replace(episodes, support_y=torch.where(episodes.support_y == 1, 2, episodes.support_y)))
    require(bool(logits[:, :, 1].isneginf().all()), f"{logits[0, 0, 1].item():.3g} for a class that no label names")
    require(bool(logits[:, :, others].isfinite().all()), "classes with support whose logits are not finite")
    if subject.info.variable_shape:
        logits = learner(replace(episodes, support_mask=episodes.support_y != 1))
        require(bool(logits[:, :, 1].isneginf().all()), f"{logits[0, 0, 1].item():.3g} for a class that is masked out")
        require(bool(logits[:, :, others].isfinite().all()), "classes with support whose logits are not finite (masks)")


@promise(PROMISES)
def the_same_call_gives_the_same_bits(subject: Subject) -> None:
    """Adapting, predicting and training draw no random numbers: a call gives the same bits each time."""
    episodes = subject.episodes()
    generator = torch.get_rng_state()
    for training in (False, True):
        learner = subject.make().train(training)
        require(torch.equal(learner(episodes), learner(episodes)), f"other logits at once (training: {training})")
        if training:
            losses = [train(learner, episodes).losses for _ in range(2)]
            require(torch.equal(*losses), "other outer losses the second time")
    require(torch.equal(torch.get_rng_state(), generator), "torch's global generator has moved on")


@promise(PROMISES)
def nothing_is_changed_by_a_call(subject: Subject) -> None:
    """Adapting, predicting and training change neither weights, nor buffers, nor examples: they are pure functions."""
    episodes = subject.episodes()
    inputs = {name: value.clone() for name, value in episodes.tensors().items()}
    for training in (False, True):
        learner = subject.make().train(training)
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        learner(episodes)
        losses = train(learner, episodes).losses if training else None
        if losses is not None and losses.requires_grad:  # some learners on `identity` have nothing to learn
            losses.sum().backward()  # type: ignore[no-untyped-call]
        changed = [name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])]
        require(not changed, f"{', '.join(changed)} changed (training: {training})")
        require(learner.training == training, "the learner's training mode changed")
    changed = [name for name, value in episodes.tensors().items() if not torch.equal(value, inputs[name])]
    require(not changed, f"{', '.join(changed)} changed")


@promise(PROMISES)
def works_without_gradients(subject: Subject) -> None:
    """Under `torch.no_grad` and `torch.inference_mode` the logits are the same, and a state outlives the first."""
    learner, episodes = subject.make(), subject.episodes()
    wanted = learner(episodes)
    with torch.no_grad():
        state = learner.adapt(episodes.support_x, episodes.support_y, way=subject.way)
        require_close(learner.predict(state, episodes.query_x), wanted, "logits under no_grad")
    attached = [name for name, value in state.items() if value.requires_grad]
    require(not attached, f"a state made under no_grad keeps a graph: {', '.join(attached)}")
    with torch.inference_mode():
        require_close(learner(episodes).clone(), wanted, "logits under inference_mode")


@promise(PROMISES)
def bf16_gives_nearly_the_same_logits(subject: Subject) -> None:
    """Under bf16 autocast, as in training, logits are float32 still, and nearly those without it."""
    learner, episodes = subject.make(dtype=torch.float32), subject.episodes(dtype=torch.float32)
    with torch.no_grad():
        wanted = learner(episodes)
        with torch.autocast("cpu", torch.bfloat16):
            found = learner(episodes)
    require(found.dtype == torch.float32, f"logits of {found.dtype}")
    size, largest = wanted.abs().max().item(), (found - wanted).abs().max().item()
    require(largest <= _BF16_TOLERANCE * size, f"logits of up to {size:.3g} that differ by up to {largest:.3g}")


@promise(PROMISES, lambda subject: subject.modality == "image")
def bytes_are_divided_by_255(subject: Subject) -> None:
    """Examples of type uint8 are divided by 255 before they are standardised; floats are not."""
    learner, episodes = subject.make(), subject.episodes()
    raw = {name: (getattr(episodes, name) * 150).to(torch.uint8) for name in ("support_x", "query_x")}
    scaled = {name: value.double() / 255 for name, value in raw.items()}
    require_close(learner(replace(episodes, **raw)), learner(replace(episodes, **scaled)), "logits of bytes")


@promise(PROMISES, lambda subject: issubclass(subject.kind, EmbeddingLearner))
def features_computed_once_give_the_same_logits(subject: Subject) -> None:
    """An `EmbeddingLearner` gives from the features of `embed` the logits that it gives from examples."""
    learner, episodes = subject.make(), subject.episodes()
    assert isinstance(learner, EmbeddingLearner)
    support, query = (torch.stack([learner.embed(x) for x in xs]) for xs in (episodes.support_x, episodes.query_x))
    state = learner.adapt_features(support, episodes.support_y, way=subject.way)
    require_close(learner.predict_features(state, query), learner(episodes), "logits from features")


@promise(PROMISES)
def compared_features_are_an_examples_own(subject: Subject) -> None:
    """`compared_features` has a row an example, which in inductive mode does not depend on the others."""
    learner, episodes = subject.make(), subject.episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=subject.way)
    features = learner.compared_features(state, episodes.support_x)
    require(features.shape[:2] == episodes.support_x.shape[:2], f"features of shape {tuple(features.shape)}")
    parts = [learner.compared_features(state, x) for x in torch.split(episodes.support_x, 1, dim=1)]
    require_close(torch.cat(parts, dim=1), features, "compared features of examples alone against together")


@promise(PROMISES, lambda subject: _classes(subject) and _one_shot_and_five(subject))
def prototypes_lie_where_examples_are_compared(subject: Subject) -> None:
    """`prototypes` in a state, if any, are in the space of `compared_features`: of one example, where that lies."""
    learner, episodes = subject.make(**_built_for(subject, 1)), subject.episodes(shot=1)
    state = learner.adapt(episodes.support_x, episodes.support_y, way=WAY)
    if "prototypes" in state:
        examples = learner.compared_features(state, _by_class(episodes))
        require_close(state["prototypes"], examples, "prototypes against the features of their only examples")


@promise(PROMISES, lambda subject: _classes(subject) and _one_shot_and_five(subject))
def the_nearest_decides_where_that_is_said(subject: Subject) -> None:
    """A learner that `decides_by_distance` answers with the class of the nearest example, by `compared_features`.

    That is so where each class has one example.
    """
    learner, episodes = subject.make(**_built_for(subject, 1)), subject.episodes(shot=1, query=_ASKED)
    if learner.decides_by_distance:
        state = learner.adapt(episodes.support_x, episodes.support_y, way=WAY)
        examples, queries = (learner.compared_features(state, x) for x in (_by_class(episodes), episodes.query_x))
        nearest = torch.cdist(queries, examples).argmin(dim=-1)
        other = int((learner.predict(state, episodes.query_x).argmax(dim=-1) != nearest).sum())
        require(not other, f"{other} of {nearest.numel()} queries in another class than that of the nearest example")


def _by_class(episodes: EpisodeBatch) -> Tensor:
    """Return the support examples (b, way, *x) of one-shot episodes, in the order of their classes."""
    order = episodes.support_y.argsort(dim=1)
    return torch.stack([x[own] for x, own in zip(episodes.support_x, order, strict=True)])


@promise(PROMISES, lambda subject: subject.info.transductive)
def the_transductive_mode_keeps_to_its_episode(subject: Subject) -> None:
    """In transductive mode, which the learner declares, queries may depend on one another, never on other episodes."""
    learner, episodes = subject.make(batch_norm="transductive"), subject.episodes()
    require(learner.batch_norm == "transductive", f"batch_norm=transductive gave an {learner.batch_norm} learner")
    alone = torch.cat([learner(episodes[number : number + 1]) for number in range(3)])
    require_close(learner(episodes), alone, "transductive logits in a batch of 3 against alone")


@promise(PROMISES, lambda subject: not subject.info.transductive)
def a_transductive_mode_that_is_not_there_is_refused(subject: Subject) -> None:
    """A learner without a transductive mode raises a UsageError when it is asked for."""
    require_refused(lambda: subject.make(batch_norm="transductive"), "batch_norm=transductive was taken")
