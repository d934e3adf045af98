"""What a training that cannot go on says, where a whole one would be too much to see it."""

import pytest

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.learners import LearnerSpec, resolve_spec
from metalearn_core.training.advice import too_large


@pytest.mark.parametrize(
    ("spec", "shape", "chunked", "options"),
    [
        (LearnerSpec(learner="maml"), EpisodeShape(5, 1, 15), True, "--chunk, --way, --train-query or backbone.width"),
        (
            LearnerSpec(learner="protonet", backbone="resnet12"),
            EpisodeShape(60, 1, 5),
            False,
            "--train-way, --train-query or backbone.widths",
        ),
        (
            LearnerSpec(learner="maml", backbone="mlp"),
            EpisodeShape(1, 10, 10),
            False,
            "--train-query or backbone.hidden",
        ),
        (LearnerSpec(learner="finetune"), None, False, "finetune.batch_size or backbone.width"),
    ],
)
def test_options_that_make_a_step_smaller_are_those_that_there_are(spec, shape, chunked, options):
    error = too_large(resolve_spec(spec), "train", shape, chunked=chunked)
    assert str(error).endswith(f": take a smaller {options}")
