"""The options of learners whose backbone may first be trained as a plain classifier."""

from pydantic import Field

from metalearn_core.learners.contract import LearnerConfig


class PretrainableConfig(LearnerConfig):
    """Meta-training may go on from the backbone of a plain classifier, as in Chen et al. 2021, Meta-Baseline."""

    pretrain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training budget that is spent first on a plain classifier of the training classes, "
        "trained as transfer is; meta-training goes on from its backbone",
    )
    pretrain_learning_rate: float = Field(
        3e-3, gt=0, description="at the start of pretraining; falls to zero by cosine"
    )
    pretrain_batch_size: int = Field(
        128, ge=2, description="examples a step of pretraining, which counts as an episode"
    )
