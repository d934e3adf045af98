"""The options of a pipeline run, declared once for every verb that starts one."""

import inspect
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    WayOption,
    given,
    parse_ratios,
)

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def _configured(
    source: Annotated[
        str | None,
        typer.Argument(help="`glyphs`, a folder of images, or Parquet; s3:// addresses too.", show_default="glyphs"),
    ] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option("--learner", help="Repeat it to compare.", show_default="protonet, maml, transfer"),
    ] = None,
    backbone: BackboneOption = None,
    way: WayOption = None,
    shot: ShotOption = None,
    query: QueryOption = None,
    train_way: TrainWayOption = None,
    train_shot: TrainShotOption = None,
    train_query: TrainQueryOption = None,
    train_episodes: Annotated[
        int | None, typer.Option("--train-episodes", help="Training budget of each learner.", show_default=False)
    ] = None,
    train_seconds: Annotated[
        float | None, typer.Option("--train-seconds", help="The same in seconds.", show_default="25")
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
    seed: Annotated[int | None, typer.Option("--seed", help="Of training.", show_default="0")] = None,
    patience: PatienceOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    processes: ProcessesOption = None,
    checkpoint_seconds: CheckpointSecondsOption = None,
    set_: SetOption = None,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", help="Values to try, as maml.inner_lr=0.1,0.4; repeatable.")
    ] = None,
    sweep_samples: Annotated[
        int | None, typer.Option("--sweep-samples", help="Draw so many points of the sweep.", show_default="all")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML with these options, or a recipe's name.", show_default=False)
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
            train_episodes=train_episodes,
            train_seconds=train_seconds,
            eval_episodes=eval_episodes,
            model_name=model_name,
            experiment=experiment,
            seed=seed,
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
    """Give a verb the options of a pipeline run before its own; it gets the configuration as its first argument."""
    shared = inspect.signature(_configured).parameters
    own = list(inspect.signature(verb).parameters.values())[1:]

    @wraps(verb)
    def with_options(**values: Any) -> None:
        settings = _configured(**{name: values.pop(name) for name in shared})
        verb(settings, **values)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*shared.values(), *own]]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def command() -> str:
    """Return this command as one would type it."""
    return shlex.join(["metalearn", *sys.argv[1:]])
