"""Pretraining: a plain classifier around a learner's backbone trains that before the learner itself is trained."""

import torch

from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import Learner
from metalearn_core.learners.pretrainable import PretrainableConfig
from metalearn_core.learners.transfer.classifier import Transfer, TransferConfig
from metalearn_core.training.checkpoint import Progress
from metalearn_core.training.report import Phase


class Phases:
    """The phases of a training: `pretrain` where the learner wants it, then `train`.

    The classifier shares the learner's backbone and has a head of its own, which is no part of the learner: it is in
    the checkpoints of pretraining, and in no bundle.

    Args:
        learner: that is trained.
        seed: of the head's initial weights.

    Attributes:
        share: of the training budget, that pretraining has.
        pretrainer: the classifier; None where nothing is pretrained.

    Raises:
        UsageError: pretraining is wanted, and there are no classes.
    """

    def __init__(self, learner: Learner, seed: int) -> None:
        config = learner.config
        self.learner, self.share = learner, 0.0
        self.pretrainer: Transfer | None = None
        if not isinstance(config, PretrainableConfig) or not config.pretrain:
            return
        if learner.spec.target_size is not None:
            raise UsageError(
                f"{learner.info.name}.pretrain: got {config.pretrain}, real targets have no classes: leave it"
            )
        options = TransferConfig(learning_rate=config.pretrain_learning_rate, batch_size=config.pretrain_batch_size)
        self.share = config.pretrain
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pretrainer = Transfer(learner.spec, learner.backbone, options)

    @property
    def first(self) -> Phase:
        """The phase that a training begins with."""
        return "train" if self.pretrainer is None else "pretrain"

    def trained(self, phase: Phase) -> Learner:
        """Return what takes the steps of a phase."""
        return self.learner if self.pretrainer is None or phase == "train" else self.pretrainer

    def pretrained(self, progress: Progress, episodes: int | None, share: float) -> bool:
        """Return whether it is time for pretraining to end: where episodes count, another batch would be too many.

        Args:
            progress: so far.
            episodes: of the whole budget; None: it is one of time.
            share: of the budget that is used.
        """
        if progress.phase == "train":
            return False
        return share >= self.share if episodes is None else (progress.episodes + 1) / episodes > self.share

    def share_of(self, phase: Phase, share: float) -> float:
        """Return the share (from 0) of a phase that is over after a share of the whole budget."""
        return share / self.share if phase == "pretrain" else max(0.0, share - self.share) / (1 - self.share)
