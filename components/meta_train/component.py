"""The step that meta-trains one learner."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def meta_train(
    dataset: Input[Dataset],
    learner: str,
    way: str,
    shot: str,
    query: int,
    train_way: str,
    train_shot: str,
    train_query: int,
    train_within_domain: bool,
    train_episodes: int,
    train_seconds: float,
    seed: int,
    patience: int,
    precision: str,
    device: str,
    processes: int,
    train_gpus: str,
    checkpoint_seconds: float,
    storage: str,
    trained: Output[Model],
) -> None:
    """Meta-train one learner; a training that was cut off goes on, one that is finished is not done again.

    Args:
        dataset: the pointer that `build_episodes` wrote.
        learner: JSON with learner, options, backbone and backbone_options.
        way: classes an evaluation episode, or a range, as 5-20.
        shot: support examples per class, or a range.
        query: query examples per class.
        train_way: classes per training episode, or a range; 0: as the learner's recipe wants.
        train_shot: likewise, support examples per class.
        train_query: likewise, query examples per class.
        train_within_domain: the classes of a training episode come from one domain.
        train_episodes: the training budget in episodes; 0: `train_seconds` decides.
        train_seconds: the training budget in seconds; 0: `train_episodes` decides.
        seed: of the initial weights and the stream of training episodes.
        patience: stop after so many validations in a row without a better one; 0: never.
        precision: `fp32`, `bf16`, or `auto`: bf16 where the processor computes it natively.
        device: `cpu`, `cuda`, or `auto`: a GPU where there is one.
        processes: that share each step's episodes; the same model whatever their number.
        train_gpus: of the pod; with some, each has a process, and nothing else trains.
        checkpoint_seconds: at most so long between checkpoints.
        storage: where finished trainings and checkpoints are kept.
        trained: the model in `bundle/`, and what happened in `training.json`.
    """
    import json
    from pathlib import Path

    from metalearn_core.steps.data import read_pointer
    from metalearn_core.steps.frame import step
    from metalearn_core.steps.naming import learner_of
    from metalearn_core.steps.requests import training_request, training_resources
    from metalearn_core.steps.training import train_learner
    from metalearn_core.storage import copy_folder
    from metalearn_core.storage.place import Place

    with step("meta_train", learner_of(learner)):
        item = json.loads(learner)
        request = training_request(
            way=way,
            shot=shot,
            query=query,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
            train_within_domain=train_within_domain,
            episodes=train_episodes,
            seconds=train_seconds,
            seed=seed,
            patience=patience,
            precision=precision,
        )
        resources = training_resources(
            device=device, processes=processes, checkpoint_seconds=checkpoint_seconds, gpus=train_gpus
        )
        folder = train_learner(*read_pointer(dataset.path), item, request, resources, Place.at(storage))
        copy_folder(folder, Path(trained.path))
        trained.metadata["learner"] = learner_of(learner)
        trained.metadata["dataset_digest"] = dataset.metadata["digest"]
