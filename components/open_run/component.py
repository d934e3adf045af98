"""The first step: the inputs are checked, and the MLflow run of this pipeline run is made."""

from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def open_run(
    experiment: str,
    storage: str,
    source: str,
    learners: list[str],
    way: str,
    shot: str,
    query: int,
    train_way: str,
    train_shot: str,
    train_query: int,
    train_within_domain: bool,
    train_episodes: int,
    train_seconds: float,
    eval_episodes: int,
    eval_seed: int,
    seed: int,
    patience: int,
    precision: str,
    device: str,
    processes: int,
    image_size: int,
    color: str,
    split_by: str,
    split_file: str,
    split_from: str,
    ratios: list[float],
    split_seed: int,
    rotations: str,
    min_examples: int,
    max_unreadable: float,
    model_name: str,
    gate: dict[str, Any],
    train_cpu: str,
    train_memory: str,
    train_gpus: str,
    train_gpu_type: str,
    train_node_selector: dict[str, str],
    train_tolerations: list[dict[str, Any]],
    node_gpus: int,
    kfp_pipeline_id: str,
    kfp_pipeline_version_id: str,
) -> None:
    """Check the inputs, and make the MLflow run of this pipeline run, or attach to the one that KFP's plugin made.

    The inputs are logged as the run's parameters, those of the training pods on a cluster only; the ids of Kubeflow are
    tags. The experiment and `node_gpus` are not logged.

    Args:
        experiment: MLflow experiment; it is made where it does not exist.
        storage: where datasets, results and checkpoints are kept; on a cluster, an `s3://` address.
        source: of the labelled examples.
        learners: JSON of each learner.
        way: classes an evaluation episode, or a range, as 5-20.
        shot: support examples per class, or a range.
        query: query examples per class.
        train_way: classes per training episode, or a range; 0: as the learner's recipe wants.
        train_shot: likewise, support examples per class.
        train_query: likewise, query examples per class.
        train_within_domain: the classes of a training episode come from one domain.
        train_episodes: the training budget in episodes; 0: `train_seconds` decides.
        train_seconds: the training budget in seconds; 0: `train_episodes` decides.
        eval_episodes: evaluation episodes of each split.
        eval_seed: of the stream of evaluation episodes.
        seed: of the initial weights and the stream of training episodes.
        patience: stop training after so many validations in a row without a better one; 0: never.
        precision: of training: `fp32`, `bf16` or `auto`.
        device: of training: `cpu`, `cuda` or `auto`.
        processes: that share each training step's episodes.
        image_size: height and width of the stored images, in pixels.
        color: `grey`, `rgb` or `auto`.
        split_by: `class`, `domain` or `auto`.
        split_file: CSV with the columns class and split.
        split_from: manifest of an older dataset.
        ratios: shares of the classes for train, validation and test.
        split_seed: which classes go where.
        rotations: splits in which quarter turns are further classes.
        min_examples: classes with fewer examples are left out.
        max_unreadable: the largest share of unreadable files that is put up with.
        model_name: the registered model's name.
        gate: rules of promotion, by the names of `GateRules`.
        train_cpu: cores of each training pod.
        train_memory: memory of each training pod.
        train_gpus: GPUs of each training pod.
        train_gpu_type: the cluster's name for its GPUs.
        train_node_selector: labels of the nodes to train on.
        train_tolerations: taints of these nodes.
        node_gpus: how many GPUs the largest node of the cluster has.
        kfp_pipeline_id: of this pipeline in Kubeflow.
        kfp_pipeline_version_id: of its version.
    """
    from metalearn_core.steps import run
    from metalearn_core.steps.frame import step

    with step("open_run"):
        run.open_run(
            experiment,
            storage=storage,
            source=source,
            learners=learners,
            way=way,
            shot=shot,
            query=query,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
            train_within_domain=train_within_domain,
            train_episodes=train_episodes,
            train_seconds=train_seconds,
            eval_episodes=eval_episodes,
            eval_seed=eval_seed,
            seed=seed,
            patience=patience,
            precision=precision,
            device=device,
            processes=processes,
            image_size=image_size,
            color=color,
            split_by=split_by,
            split_file=split_file,
            split_from=split_from,
            ratios=ratios,
            split_seed=split_seed,
            rotations=rotations,
            min_examples=min_examples,
            max_unreadable=max_unreadable,
            model_name=model_name,
            gate=gate,
            node_gpus=node_gpus,
            pod={
                "train_cpu": train_cpu,
                "train_memory": train_memory,
                "train_gpus": train_gpus,
                "train_gpu_type": train_gpu_type,
                "train_node_selector": train_node_selector,
                "train_tolerations": train_tolerations,
            },
            kubeflow={"kfp.pipeline_id": kfp_pipeline_id, "kfp.pipeline_version_id": kfp_pipeline_version_id},
        )
