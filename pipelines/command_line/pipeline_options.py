"""The options of a pipeline run, declared once for every verb that starts one."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.command_line.options import (
    BackboneOption,
    BuildShardsOption,
    CheckpointSecondsOption,
    ColorOption,
    DeviceOption,
    ImageSizeOption,
    MaxUnreadableOption,
    MinExamplesOption,
    PatienceOption,
    PrecisionOption,
    ProcessesOption,
    QueryOption,
    RatiosOption,
    RotationsOption,
    SetOption,
    ShotOption,
    SplitByOption,
    SplitFileOption,
    SplitFromOption,
    SplitSeedOption,
    TrainQueryOption,
    TrainShotOption,
    TrainWayOption,
    TrainWithinDomainOption,
    WayOption,
    given,
    parse_ratios,
)
from pipelines.command_line.shared_options import with_shared

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def _configured(
    source: Annotated[
        str | None,
        typer.Argument(help="`glyphs`, a folder of images, or Parquet; also on s3://.", show_default="glyphs"),
    ] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option(
            "--learner", help="A learner to train; repeat to compare several.", show_default="protonet, maml, transfer"
        ),
    ] = None,
    way: WayOption = None,
    shot: ShotOption = None,
    query: QueryOption = None,
    backbone: BackboneOption = None,
    train_way: TrainWayOption = None,
    train_shot: TrainShotOption = None,
    train_query: TrainQueryOption = None,
    train_within_domain: TrainWithinDomainOption = None,
    train_episodes: Annotated[
        int | None,
        typer.Option("--train-episodes", help="Training budget per learner, in episodes.", show_default=False),
    ] = None,
    train_seconds: Annotated[
        float | None,
        typer.Option("--train-seconds", help="Training budget per learner, in seconds.", show_default="25"),
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option("--eval-episodes", help="Test (and validation) episodes.", show_default="1000")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="Name of the registered model.", show_default="few-shot")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="MLflow experiment.", show_default="few-shot")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the weights and the training episodes.", show_default="0")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", help="Seeds per learner, counted from --seed; 3 or more to compare learners.", show_default="1"
        ),
    ] = None,
    patience: PatienceOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    processes: ProcessesOption = None,
    checkpoint_seconds: CheckpointSecondsOption = None,
    set_: SetOption = None,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", help="Values to try, e.g. maml.inner_lr=0.1,0.4. Repeatable.")
    ] = None,
    sweep_samples: Annotated[
        int | None,
        typer.Option(
            "--sweep-samples", help="Number of the sweep's combinations to draw at random.", show_default="all"
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file with these options, or a recipe's name.", show_default=False),
    ] = None,
    image_size: ImageSizeOption = None,
    color: ColorOption = None,
    split_by: SplitByOption = None,
    split_file: SplitFileOption = None,
    split_from: SplitFromOption = None,
    ratios: RatiosOption = None,
    split_seed: SplitSeedOption = None,
    rotations: RotationsOption = None,
    min_examples: MinExamplesOption = None,
    max_unreadable: MaxUnreadableOption = None,
    build_shards: BuildShardsOption = None,
) -> "RunConfig":
    """Return the configuration that these options, a file and the defaults make together."""
    from pipelines.config import read_config

    return read_config(
        config,
        given(
            source=source,
            learners=learner or None,
            backbone=backbone,
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
            model_name=model_name,
            experiment=experiment,
            seed=seed,
            seeds=seeds,
            patience=patience,
            precision=precision,
            device=device,
            processes=processes,
            checkpoint_seconds=checkpoint_seconds,
            sweep_samples=sweep_samples,
            image_size=image_size,
            color=color,
            split_by=split_by,
            split_file=split_file,
            split_from=split_from,
            ratios=parse_ratios(ratios),
            split_seed=split_seed,
            rotations=rotations,
            min_examples=min_examples,
            max_unreadable=max_unreadable,
            build_shards=build_shards,
        ),
        set_ or [],
        sweep or [],
    )


def takes_pipeline_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of a pipeline run; it gets the configuration as its parameter `settings`."""
    return with_shared(verb, "settings", _configured)


def command() -> str:
    """Return this command as one would type it."""
    return shlex.join(["metalearn", *sys.argv[1:]])
