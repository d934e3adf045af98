"""The step that evaluates one trained learner."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    dataset: Input[Dataset],
    trained: Input[Model],
    way: str,
    shot: str,
    query: int,
    eval_episodes: int,
    eval_seed: int,
    storage: str,
    evaluated: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Evaluate a learner on validation episodes, for selection, and on test episodes, for the report and the gate.

    Args:
        dataset: the pointer that `build_episodes` wrote.
        trained: what `meta_train` made.
        way: classes per episode, or a range, as 5-20.
        shot: support examples per class, or a range.
        query: query examples per class.
        eval_episodes: how many episodes.
        eval_seed: of the stream of episodes.
        storage: where evaluations are kept.
        evaluated: `evaluation.json`.
        metrics: the accuracies with their half-widths.
    """
    from pathlib import Path

    from metalearn_core.steps.data import read_pointer
    from metalearn_core.steps.frame import step
    from metalearn_core.steps.requests import evaluation_request
    from metalearn_core.steps.training import EVALUATION, TRAINING, evaluate_learner, result_metrics
    from metalearn_core.storage import copy_folder, read_json
    from metalearn_core.storage.place import Place

    with step("evaluate", trained.metadata["learner"]):
        record = read_json(Path(trained.path) / TRAINING, "training")
        request = evaluation_request(way=way, shot=shot, query=query, episodes=eval_episodes, seed=eval_seed)
        folder = evaluate_learner(*read_pointer(dataset.path), Path(trained.path), request, Place.at(storage))
        copy_folder(folder, Path(evaluated.path))
        results = read_json(folder / EVALUATION, "evaluation")
        for name, value in result_metrics(record, results).items():
            metrics.log_metric(name, value)
