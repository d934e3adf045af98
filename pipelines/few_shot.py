"""The pipeline: from a source of labelled examples to a gated promotion."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from kfp import dsl

from components.build_episodes.component import build_episodes
from components.close_run.component import close_run
from components.decode_part.component import decode_part
from components.evaluate.component import evaluate
from components.image import IMAGE
from components.meta_train.component import meta_train
from components.meta_train_nodes.component import meta_train_nodes
from components.open_run.component import open_run
from components.promote.component import promote
from components.register.component import register
from components.select_learner.component import select_learner
from components.validate_episodes.component import validate_episodes
from metalearn_core.errors import UsageError
from metalearn_core.steps.frame import PIPELINE_RUN_VARIABLE
from metalearn_core.tracking_server import shown
from metalearn_core.version import IMAGE_VARIABLE
from pipelines.cluster.package import package_at
from pipelines.cluster.placement import IMAGE_USER, Kind, Placement
from pipelines.workdir import TRACKING_VARIABLE

NAME = "few-shot"
DEFAULT_LEARNERS = [
    '{"learner": "protonet", "options": {}, "backbone": "conv4", "backbone_options": {}}',
    '{"learner": "maml", "options": {}, "backbone": "conv4", "backbone_options": {}}',
    '{"learner": "transfer", "options": {}, "backbone": "conv4", "backbone_options": {}}',
]


class Placed(Protocol):
    """Gives a task what every step has, and what steps of its kind have on a cluster."""

    def __call__(
        self, task: dsl.PipelineTask, kind: Kind, *, most_retries: int | None = None, **chosen: Any
    ) -> dsl.PipelineTask:
        """Place the task.

        Args:
            task: of the pipeline.
            kind: of the task.
            most_retries: of this task, where its kind has more.
            chosen: the pipeline's inputs that choose where it runs.
        """
        ...


def few_shot_pipeline(
    *,
    image: str = IMAGE,
    parallelism: int = 0,
    tracking_uri: str | None = None,
    run_id_by_label: bool = True,
    build_shards: int = 1,
    storage: str = "",
    placement: Placement | None = None,
) -> Any:
    """Return the pipeline for one engine.

    Args:
        image: in which every step runs.
        parallelism: how many learners are trained at a time; 0: as many as the placement allows and the engine can.
        tracking_uri: of the MLflow server, put into every step's environment; None: the environment has it.
        run_id_by_label: each step reads its pipeline run's id from its pod's label, as on Kubernetes; otherwise the
            environment has it.
        build_shards: steps that share the decoding of the source; 1: the build does it.
        storage: default of the pipeline's input; empty: each run names its own.
        placement: what each step gets on a cluster; None: there is none. Its part on the training's pod is the default
            of the pipeline's inputs, by which a run may choose another.

    Raises:
        UsageError: the tracking URI holds a password, which everybody could read in the pipeline.
    """
    if tracking_uri and shown(tracking_uri) != tracking_uri:
        raise UsageError(
            f"tracking URI {shown(tracking_uri)}: "
            "it holds a password: give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as a secret (--secret-env)"
        )

    def placed(
        task: dsl.PipelineTask, kind: Kind, *, most_retries: int | None = None, **chosen: Any
    ) -> dsl.PipelineTask:
        """Give a task what every step has. KFP's cache is off: the steps keep their results themselves, by content."""
        task.set_container_image(image)
        task.set_caching_options(False)
        if tracking_uri:
            task.set_env_variable(TRACKING_VARIABLE, tracking_uri)
        if run_id_by_label:
            from kfp import kubernetes

            kubernetes.use_field_path_as_env(task, PIPELINE_RUN_VARIABLE, "metadata.labels['pipeline/runid']")
        if placement:
            from pipelines.cluster.tasks import place

            task.set_env_variable(IMAGE_VARIABLE, image)
            fixed = {TRACKING_VARIABLE} if tracking_uri else set()
            place(task, placement, kind, chosen, fixed, most_retries)
        return task

    shards = [f"{number}/{build_shards}" for number in range(1, build_shards + 1)] if build_shards > 1 else []
    # At each setting of a task KFP goes through the whole stack (`inspect.stack`), and through all modules for a frame
    # without a file, as notebooks and test runners have: that takes ten seconds. The stack of a thread is short.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_define, placed, parallelism, shards, placement or Placement(), image, storage).result()


def _trainer(placement: Placement, image: str) -> Any:
    """Return the component that trains: in its own pod, or on several machines."""
    if placement.nodes == 1:
        return meta_train
    train = placement.train
    return partial(
        meta_train_nodes,
        nodes=placement.nodes,
        image=image,
        runtime=placement.runtime,
        user=IMAGE_USER,
        timeout=train.timeout,
        shm=train.shm or "",
        scratch=train.scratch or "",
        image_pull_secrets=list(placement.image_pull_secrets),
    )


def _define(
    placed: Placed, parallelism: int, shards: list[str], placement: Placement, image: str, default_storage: str
) -> Any:
    trainer = _trainer(placement, image)
    pod = placement.arguments()

    @dsl.pipeline(
        name=NAME,
        description="From labelled examples to a promoted model: build, meta-train, evaluate, select, promote.",
    )
    def few_shot(
        source: str = "glyphs",
        storage: str = default_storage,
        learners: list[str] = DEFAULT_LEARNERS,
        way: str = "5",
        shot: str = "1",
        query: int = 15,
        train_way: str = "0",
        train_shot: str = "0",
        train_query: int = 0,
        train_within_domain: bool = False,
        train_episodes: int = 0,
        train_seconds: float = 25.0,
        eval_episodes: int = 1000,
        eval_seed: int = 0,
        seed: int = 0,
        patience: int = 0,
        precision: str = "auto",
        device: str = "auto",
        processes: int = 1,
        checkpoint_seconds: float = 60.0,
        image_size: int = 28,
        color: str = "auto",
        split_by: str = "auto",
        split_file: str = "",
        split_from: str = "",
        ratios: list[float] = [0.7, 0.15, 0.15],  # noqa: B006
        split_seed: int = 0,
        rotations: str = "train",
        min_examples: int = 1,
        max_unreadable: float = 0.05,
        experiment: str = "few-shot",
        model_name: str = "few-shot",
        gate: dict[str, Any] = {},  # noqa: B006
        command: str = "",
        train_cpu: str = pod["train_cpu"],
        train_memory: str = pod["train_memory"],
        train_gpus: str = pod["train_gpus"],
        train_gpu_type: str = pod["train_gpu_type"],
        train_node_selector: dict[str, str] = pod["train_node_selector"],
        train_tolerations: list[dict[str, Any]] = pod["train_tolerations"],
        kfp_pipeline_id: str = "",
        kfp_pipeline_version_id: str = "",
    ) -> None:
        """Train several learners on one source, and promote the best when it beats the champion.

        Args:
            source: `glyphs`, a folder of images, or a Parquet file or folder.
            storage: where datasets, results and checkpoints are kept; on a cluster, an `s3://` address.
            learners: JSON of each learner: learner, options, backbone, backbone_options; `seed` where not the run's.
            way: classes an evaluation episode, or a range, as 5-20.
            shot: support examples per class, or a range.
            query: query examples per class.
            train_way: classes per training episode, or a range; 0: as each learner's recipe wants.
            train_shot: likewise, support examples per class.
            train_query: likewise, query examples per class.
            train_within_domain: the classes of a training episode come from one domain.
            train_episodes: the training budget of each learner in episodes; 0: train_seconds decides.
            train_seconds: the training budget of each learner in seconds; 0: train_episodes decides.
            eval_episodes: evaluation episodes on each of validation and test.
            eval_seed: of the stream of evaluation episodes.
            seed: of the initial weights and the stream of training episodes.
            patience: stop training after so many validations in a row without a better one; 0: never.
            precision: of training: `fp32`, `bf16`, or `auto`: bf16 where the processor computes it natively.
            device: of training: `cpu`, `cuda`, or `auto`: a GPU where there is one.
            processes: that share each training step's episodes, one a GPU at least; the model stays the same.
            checkpoint_seconds: at most so long between checkpoints of a training.
            image_size: height and width of the stored images, in pixels.
            color: `grey`, `rgb`, or `auto`.
            split_by: `class`, `domain`, or `auto`.
            split_file: CSV with the columns class and split; overrides split_by.
            split_from: manifest of an older dataset, whose classes keep their splits.
            ratios: shares of the classes for train, validation and test.
            split_seed: which classes go where.
            rotations: splits in which quarter turns are further classes: `train`, `all` or `none`.
            min_examples: classes with fewer examples are left out.
            max_unreadable: the largest share of unreadable files that is put up with.
            experiment: MLflow experiment.
            model_name: name of the registered model.
            gate: rules of promotion, by the names of `GateRules`.
            command: the command that reproduces the run, for the report.
            train_cpu: cores of each training pod, as 4 or 500m. These six matter on a cluster only.
            train_memory: memory of each training pod, as 16Gi.
            train_gpus: GPUs of each training pod, as 2; what trains, where there are some.
            train_gpu_type: the cluster's name for its GPUs, as nvidia.com/gpu.
            train_node_selector: labels of the nodes to train on, as {"pool": "gpu"}.
            train_tolerations: taints of these nodes, as [{"key": "nvidia.com/gpu", "operator": "Exists"}].
            kfp_pipeline_id: of this pipeline in Kubeflow, as `metalearn submit` tells it: a tag of the MLflow run.
            kfp_pipeline_version_id: likewise, of its version.
        """
        shape = {"way": way, "shot": shot, "query": query}
        train_shape = {"train_way": train_way, "train_shot": train_shot, "train_query": train_query}
        within = {"train_within_domain": train_within_domain}
        episodes = {**shape, "eval_episodes": eval_episodes, "eval_seed": eval_seed}
        build = {
            "source": source,
            "image_size": image_size,
            "color": color,
            "split_by": split_by,
            "split_file": split_file,
            "split_from": split_from,
            "ratios": ratios,
            "split_seed": split_seed,
            "rotations": rotations,
            "min_examples": min_examples,
            "max_unreadable": max_unreadable,
        }
        budget = {
            "train_episodes": train_episodes,
            "train_seconds": train_seconds,
            "seed": seed,
            "patience": patience,
            "precision": precision,
        }
        chosen: dict[str, Any] = {
            "train_cpu": train_cpu,
            "train_memory": train_memory,
            "train_gpus": train_gpus,
            "train_gpu_type": train_gpu_type,
            "train_node_selector": train_node_selector,
            "train_tolerations": train_tolerations,
        }
        opened = placed(
            open_run(
                experiment=experiment,
                storage=storage,
                learners=learners,
                **episodes,
                **train_shape,
                **within,
                **budget,
                device=device,
                processes=processes,
                **build,
                model_name=model_name,
                gate=gate,
                **chosen,
                node_gpus=placement.node_gpus,
                kfp_pipeline_id=kfp_pipeline_id,
                kfp_pipeline_version_id=kfp_pipeline_version_id,
            ),
            "small",
            most_retries=1,  # what most often fails here is an input, and stays wrong
        )
        before = opened
        if shards:
            with dsl.ParallelFor(items=shards, name="each-shard", parallelism=placement.parallelism) as shard:
                before = placed(decode_part(**build, shard=shard, storage=storage), "build").after(opened)
        built = placed(build_episodes(**build, shards=shards, storage=storage), "build").after(before)
        dataset = built.outputs["dataset"]
        validated = placed(
            validate_episodes(dataset=dataset, learners=learners, **shape, **train_shape, **within), "build"
        )
        trained_at_once = parallelism or placement.parallelism
        machines = ("train_cpu", "train_memory", "train_gpu_type") if placement.nodes > 1 else ()
        with dsl.ParallelFor(items=learners, name="each-learner", parallelism=trained_at_once) as learner:
            trained = placed(
                trainer(
                    dataset=dataset,
                    learner=learner,
                    **shape,
                    **train_shape,
                    **within,
                    **budget,
                    device=device,
                    processes=processes,
                    train_gpus=train_gpus,
                    checkpoint_seconds=checkpoint_seconds,
                    storage=storage,
                    **{name: chosen[name] for name in machines},
                ),
                "train",
                **chosen,
            ).after(validated)
            evaluated = placed(
                evaluate(dataset=dataset, trained=trained.outputs["trained"], **episodes, storage=storage), "evaluate"
            )
        selected = placed(
            select_learner(
                trained=dsl.Collected(trained.outputs["trained"]),
                evaluated=dsl.Collected(evaluated.outputs["evaluated"]),
            ),
            "small",
        )
        registered = placed(
            register(
                model_name=model_name,
                selected=selected.outputs["selected"],
                evaluation=selected.outputs["evaluation"],
            ),
            "small",
        )
        promoted = placed(
            promote(dataset=dataset, model_name=model_name, version=registered.output, **episodes, gate=gate),
            "evaluate",
        )
        placed(
            close_run(
                dataset=dataset,
                verdict=validated.outputs["verdict"],
                evaluated=dsl.Collected(evaluated.outputs["evaluated"]),
                decision=promoted.outputs["decision"],
                command=command,
            ),
            "evaluate",
        )

    return few_shot


def compile_pipeline(
    path: str,
    *,
    kubernetes_manifest: bool = False,
    image: str = IMAGE,
    build_shards: int = 1,
    storage: str = "",
    tracking_uri: str | None = None,
    placement: Placement | None = None,
) -> None:
    """Write the pipeline as YAML: KFP's intermediate representation, or objects of `pipelines.kubeflow.org`.

    The name of a version among these objects ends with a digest of its content: one commit may have several, each for
    another image or placement.
    """
    from kfp.compiler import Compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    pipeline = few_shot_pipeline(
        image=image,
        build_shards=build_shards,
        storage=storage,
        tracking_uri=tracking_uri,
        placement=placement or Placement(),
    )
    if not kubernetes_manifest:
        Compiler().compile(pipeline, path)
        return
    with TemporaryDirectory(prefix="metalearn-") as folder:
        plain = Path(folder) / f"{NAME}.yaml"
        Compiler().compile(pipeline, str(plain))
        version = package_at(plain, NAME).exact_version
    options = KubernetesManifestOptions(
        pipeline_name=NAME, pipeline_version_name=f"{NAME}-{version}", include_pipeline_manifest=True
    )
    Compiler().compile(pipeline, path, kubernetes_manifest_format=True, kubernetes_manifest_options=options)
