"""Promises of what a learner says of itself: its name, paper and options, and what it takes and refuses."""

import re
from typing import Literal

import torch

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.learners import make_learner
from metalearn_core.testing.promises import Promise, promise, require, require_refused
from metalearn_core.testing.subject import SHOT, WAY, Subject, dataset_spec

PROMISES: list[Promise] = []


@promise(PROMISES)
def it_says_what_it_is(subject: Subject) -> None:
    """A learner names itself as options can (`my_learner`), and its paper with the year."""
    info = subject.info
    require(re.fullmatch(r"[a-z][a-z0-9_]*", info.name) is not None, f"the name {info.name!r}")
    require(re.search(r"\b(19|20)\d\d\b", info.paper) is not None, f"a paper without a year: {info.paper!r}")
    require(bool(info.modalities and info.targets), "no modality, or no target, at all")


@promise(PROMISES)
def every_option_is_documented_and_has_a_default(subject: Subject) -> None:
    """`Config` documents every option, and makes a learner without any being given."""
    fields = subject.kind.Config.model_fields
    silent = [name for name, field in fields.items() if not field.description]
    require(not silent, f"no description of {', '.join(silent)}")
    required = [name for name, field in fields.items() if field.is_required()]
    require(not required, f"no default of {', '.join(required)}")
    subject.kind.Config()


@promise(PROMISES, lambda subject: subject.trains_on_episodes and subject.target == "class")
def its_training_episodes_fit_those_of_evaluation(subject: Subject) -> None:
    """`train_shape` gives episodes of the asked way, where the way is fixed; `episodes_at_once` is one at least."""
    learner, asked = subject.make(), EpisodeShape(way=WAY, shot=SHOT, query=15)
    shape = subject.kind.train_shape(asked, learner.config)
    require(not subject.info.fixed_way or shape.way == WAY, f"{shape} for {asked}")
    require(learner.episodes_at_once(shape) >= 1, f"episodes_at_once: {learner.episodes_at_once(shape)}")


@promise(PROMISES)
def the_seed_decides_the_weights(subject: Subject) -> None:
    """The same seed gives the same weights, another one others; torch's global generator is left as it was."""
    before = torch.get_rng_state()
    made = [subject.make(seed=seed, randomise=False) for seed in (3, 3, 4)]
    require(torch.equal(torch.get_rng_state(), before), "torch's global generator has moved on")
    one, same, other = (torch.nn.utils.parameters_to_vector(learner.parameters()) for learner in made)
    require(torch.equal(one, same), "other weights by the same seed")
    require(not torch.equal(one, other), "the same weights by another seed")


@promise(PROMISES, lambda subject: len(subject.info.modalities) == 1)
def another_modality_is_refused(subject: Subject) -> None:
    """Examples of a modality that a learner does not declare raise a UsageError when it is made."""
    other: Literal["image", "vector"] = "vector" if subject.modality == "image" else "image"
    spec = subject.spec.model_copy(update={"backbone": "mlp", "backbone_options": {}})
    dataset = dataset_spec(other, subject.target)
    require_refused(lambda: make_learner(spec, dataset, way=WAY), f"{other} examples were taken")


@promise(PROMISES, lambda subject: len(subject.info.targets) == 1)
def another_kind_of_targets_is_refused(subject: Subject) -> None:
    """Targets of a kind that a learner does not declare raise a UsageError when it is made."""
    other = "real" if subject.target == "class" else "class"
    require_refused(
        lambda: make_learner(subject.spec, dataset_spec(subject.modality, other), way=WAY),
        f"{other} targets were taken",
    )
