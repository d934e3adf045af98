"""Promises of what is kept: weights, bundles, and checkpoints that a training goes on from."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from metalearn_core.bundle import load_bundle, save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sinusoid import SinusoidTasks
from metalearn_core.data.tasks import Tasks
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.testing.promises import Promise, promise, require, require_close, require_same
from metalearn_core.testing.subject import QUERY, SHOT, WAY, Subject, small_dataset
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan

PROMISES: list[Promise] = []
EPISODES = 6  # of a training that is cut off
_NARROW = {"hidden": (4,)}  # the wider, the steeper are squared errors, and the sooner inner steps diverge


@promise(PROMISES)
def a_copy_with_the_same_weights_gives_the_same_logits(subject: Subject) -> None:
    """All that a learner has learned is in its `state_dict`: loaded by another one, it gives the same bits."""
    learner, other, episodes = subject.make(seed=0), subject.make(seed=9), subject.episodes()
    other.load_state_dict(learner.state_dict())
    found, wanted = other(episodes), learner(episodes)
    require_close(found, wanted, "logits of a learner with the same state_dict")
    require(torch.equal(found, wanted), "logits of a learner with the same state_dict: other bits")


@promise(PROMISES)
def a_bundle_gives_the_same_logits(subject: Subject) -> None:
    """A learner that was saved as a bundle is loaded with the same weights, and gives the same bits."""
    learner, episodes = subject.make(dtype=torch.float32), subject.episodes(dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        shape, lineage = EpisodeShape(WAY, SHOT, QUERY), {"dataset_digest": "conformance"}
        save_bundle(path, learner, subject.spec, episode=shape, lineage=lineage)
        loaded, _ = load_bundle(path)
    require_same(loaded.state_dict(), learner.state_dict(), "weights of the bundle against those that were saved")
    require(torch.equal(loaded(episodes), learner(episodes)), "other logits than those of the learner that was saved")


class _Sinusoids(SinusoidTasks):
    """Sinusoids whose points reach a learner as numbers from −1 to 1, on which no learner's inner steps diverge."""

    spec = SinusoidTasks.spec.model_copy(update={"std": (5.0,)})


class _CutOffError(Exception):
    """Ends a training in its midst."""


@promise(PROMISES, lambda subject: subject.target == "class" or "vector" in subject.info.modalities)
def a_training_that_was_cut_off_ends_with_the_same_bytes(subject: Subject) -> None:
    """Trained by `fit`, cut off and called again, a learner ends with the bytes of one that was not cut off.

    On classes; where it learns real targets, on sinusoids.
    """
    spec, dataset = subject.spec, _tasks(subject)
    if subject.target == "real":
        spec = LearnerSpec(learner=spec.learner, options=spec.options, backbone="mlp", backbone_options=_NARROW)
    plan = TrainingPlan(
        way=subject.way,
        shot=SHOT,
        query=QUERY,
        episodes=EPISODES,
        validations=2,
        validation_episodes=4,
        precision="fp32",
        device="cpu",
        threads=1,
        checkpoint_seconds=0,
    )

    def cut_off(metrics: Mapping[str, float], _episodes: int) -> None:
        if any(name.startswith("validation/") for name in metrics):
            raise _CutOffError

    whole = fit(spec, dataset, plan)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(spec, dataset, plan, checkpoint_dir=folder, on_metrics=cut_off)
        except _CutOffError:
            pass
        else:
            require(False, "a training without validation")
        resumed = fit(spec, dataset, plan, checkpoint_dir=folder)
    what = "weights of a training that went on against those of one that was not cut off"
    require_same(resumed.learner.state_dict(), whole.learner.state_dict(), what)
    start = make_learner(spec, dataset.spec, way=subject.way).state_dict()
    require(
        any(not torch.equal(value, start[name]) for name, value in whole.learner.state_dict().items()),
        "the weights that it started with, after training",
    )


def _tasks(subject: Subject) -> Tasks:
    return small_dataset(subject.modality) if subject.target == "class" else _Sinusoids()
