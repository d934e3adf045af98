"""The step that selects one of the learners."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def select_learner(
    trained: Input[list[Model]],
    evaluated: Input[list[Artifact]],
    selected: Output[Model],
    evaluation: Output[Artifact],
) -> str:
    """Select the learner with the highest accuracy on validation episodes; test figures play no part.

    Args:
        trained: what `meta_train` made, a learner each.
        evaluated: what `evaluate` made, in the same order.
        selected: a copy of the selected training.
        evaluation: a copy of its evaluation.

    Returns:
        the learner's name.
    """
    from pathlib import Path

    from metalearn_core.steps import promotion
    from metalearn_core.steps.frame import step
    from metalearn_core.storage import copy_folder

    with step("select_learner"):
        selection = promotion.select([Path(artifact.path) for artifact in evaluated])
        copy_folder(Path(trained[selection.position].path), Path(selected.path))
        copy_folder(Path(evaluated[selection.position].path), Path(evaluation.path))
    return selection.learner
