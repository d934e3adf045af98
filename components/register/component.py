"""The step that registers the selected model in MLflow."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(model_name: str, selected: Input[Model], evaluation: Input[Artifact]) -> str:
    """Register a bundle as a version of a model, with the alias `candidate`; the same bundle is registered once.

    Args:
        model_name: the registered model's name.
        selected: the selected training.
        evaluation: its evaluation.

    Returns:
        the version.
    """
    from pathlib import Path

    from metalearn_core.steps import promotion
    from metalearn_core.steps.frame import step

    with step("register"):
        version = promotion.register(Path(selected.path), Path(evaluation.path), model_name)
    return version.version
