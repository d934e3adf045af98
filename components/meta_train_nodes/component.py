"""The step that has one learner meta-trained by several machines, and waits for them."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output, TaskConfig, TaskConfigField, TaskConfigPassthrough

from components.image import IMAGE


@dsl.component(
    base_image=IMAGE,
    install_kfp_package=False,
    task_config_passthroughs=[
        TaskConfigPassthrough(TaskConfigField.RESOURCES, apply_to_task=True),  # the step's own; KFP wants them named
        TaskConfigPassthrough(TaskConfigField.KUBERNETES_NODE_SELECTOR),
        TaskConfigPassthrough(TaskConfigField.KUBERNETES_TOLERATIONS),
        TaskConfigPassthrough(TaskConfigField.ENV, apply_to_task=True),
    ],
)
def meta_train_nodes(
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
    train_cpu: str,
    train_memory: str,
    train_gpus: str,
    train_gpu_type: str,
    checkpoint_seconds: float,
    storage: str,
    nodes: int,
    image: str,
    runtime: str,
    user: int,
    timeout: int,
    shm: str,
    scratch: str,
    image_pull_secrets: list[str],
    task_config: TaskConfig,
    trained: Output[Model],
) -> None:
    """Have one learner meta-trained by several machines: a TrainJob of Kubeflow Trainer, with `torchrun` on each.

    The step itself waits, and needs little for that. A training that was cut off goes on, one that is finished is not
    done again.

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
        processes: of each machine, that share each step's episodes; the same model whatever their number.
        train_cpu: cores of each machine.
        train_memory: memory of each machine.
        train_gpus: of each machine; with some, each has a process, and nothing else trains.
        train_gpu_type: the cluster's name for its GPUs.
        checkpoint_seconds: at most so long between checkpoints.
        storage: where finished trainings and checkpoints are kept: an s3:// address, which all machines reach.
        nodes: how many machines.
        image: that they run.
        runtime: of Kubeflow Trainer, which they run in.
        user: that they run as.
        timeout: seconds after which Kubernetes ends them.
        shm: size of each machine's /dev/shm; empty: the container runtime's.
        scratch: size of each machine's /tmp; empty: no limit but its disk's.
        image_pull_secrets: of the registry that has the image.
        task_config: variables and nodes of the machines; KFP fills it in.
        trained: the model in `bundle/`, and what happened in `training.json`.
    """
    import functools
    import json
    from pathlib import Path

    from metalearn_core.steps.data import read_pointer
    from metalearn_core.steps.frame import step
    from metalearn_core.steps.job_request import job_request
    from metalearn_core.steps.naming import learner_of
    from metalearn_core.steps.placement import training_pod
    from metalearn_core.steps.requests import training_request, training_resources
    from metalearn_core.steps.train_job import train_in_job
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
        pod = training_pod(
            train_cpu=train_cpu, train_memory=train_memory, train_gpus=train_gpus, train_gpu_type=train_gpu_type
        )
        job = job_request(
            task_config,
            resources=pod.resources(),
            nodes=nodes,
            image=image,
            runtime=runtime,
            user=user,
            timeout=timeout,
            shm=shm or None,
            scratch=scratch or None,
            image_pull_secrets=image_pull_secrets,
        )
        train = functools.partial(train_in_job, request=job)
        folder = train_learner(*read_pointer(dataset.path), item, request, resources, Place.at(storage), train)
        copy_folder(folder, Path(trained.path))
        trained.metadata["learner"] = learner_of(learner)
        trained.metadata["dataset_digest"] = dataset.metadata["digest"]
