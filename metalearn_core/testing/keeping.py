"""Promises of what is kept: weights, bundles, and checkpoints that a training goes on from."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from metalearn_core.bundle import load_bundle, save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.testing.promises import Promise, promise, require, require_close, require_same
from metalearn_core.testing.subject import QUERY, SHOT, WAY, Subject, small_dataset
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan

PROMISES: list[Promise] = []
EPISODES = 6  # of a training that is cut off


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


class _CutOffError(Exception):
    """Ends a training in its midst."""


@promise(PROMISES, lambda subject: subject.target == "class")
def a_training_that_was_cut_off_ends_with_the_same_bytes(subject: Subject) -> None:
    """Trained by `fit`, cut off and called again, a learner ends with the bytes of one that was not cut off."""
    dataset = small_dataset(subject.modality)
    plan = TrainingPlan(
        way=WAY,
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
        if "validation/accuracy" in metrics:
            raise _CutOffError

    whole = fit(subject.spec, dataset, plan)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(subject.spec, dataset, plan, checkpoint_dir=folder, on_metrics=cut_off)
        except _CutOffError:
            pass
        else:
            require(False, "a training without validation")
        resumed = fit(subject.spec, dataset, plan, checkpoint_dir=folder)
    what = "weights of a training that went on against those of one that was not cut off"
    require_same(resumed.learner.state_dict(), whole.learner.state_dict(), what)
    moved = make_start(subject)
    require(
        any(not torch.equal(value, moved[name]) for name, value in whole.learner.state_dict().items()),
        "the weights that it started with, after training",
    )


def make_start(subject: Subject) -> dict[str, torch.Tensor]:
    """Return the weights that a training with seed 0 starts with."""
    return dict(subject.make(dtype=torch.float32, randomise=False).state_dict())
