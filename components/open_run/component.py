"""The first step: the MLflow run of this pipeline run."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def open_run(
    experiment: str,
    source: str,
    learners: list[str],
    way: int,
    shot: int,
    query: int,
    train_episodes: int,
    train_seconds: float,
    eval_episodes: int,
    seed: int,
    model_name: str,
) -> None:
    """Make the MLflow run that stands for this pipeline run, or attach to the one that Kubeflow's MLflow plugin made.

    All inputs but the experiment are logged as the run's parameters.

    Args:
        experiment: MLflow experiment; it is made where it does not exist.
        source: of the labelled examples.
        learners: JSON of each learner.
        way: classes an evaluation episode.
        shot: support examples a class.
        query: query examples a class.
        train_episodes: the training budget in episodes, or 0.
        train_seconds: the training budget in seconds, or 0.
        eval_episodes: how many evaluation episodes.
        seed: of training.
        model_name: the registered model's name.
    """
    from metalearn_core.steps import run
    from metalearn_core.steps.frame import step

    with step("open_run"):
        run.open_run(
            experiment,
            learners,
            source=source,
            way=way,
            shot=shot,
            query=query,
            train_episodes=train_episodes,
            train_seconds=train_seconds,
            eval_episodes=eval_episodes,
            seed=seed,
            model_name=model_name,
        )
