"""The verbs `dataset build`, `dataset show` and `dataset validate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metalearn_core.errors import UsageError
from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    ColorOption,
    ImageSizeOption,
    JsonOption,
    MaxUnreadableOption,
    MinExamplesOption,
    QueryOption,
    RatiosOption,
    RotationsOption,
    ShotOption,
    SplitByOption,
    SplitFileOption,
    SplitFromOption,
    SplitSeedOption,
    WayOption,
    WorkdirOption,
    answers,
    given,
    notices,
    parse_ratios,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from metalearn_core.data.manifest import Manifest

DatasetArgument = Annotated[str, typer.Argument(help="An episode dataset: a folder or an s3:// URI.")]
app = typer.Typer(help="Build, show and validate episode datasets.", no_args_is_help=True)


def add_to(parent: typer.Typer) -> None:
    """Add the verbs, below `dataset`."""
    app.command(epilog="Example:  metalearn dataset build path/to/images my-episodes")(build)
    app.command(epilog="Example:  metalearn dataset merge part-1 part-2 part-3 my-episodes")(merge)
    app.command(epilog="Example:  metalearn dataset show my-episodes")(show)
    app.command(epilog="Example:  metalearn dataset validate my-episodes --way 5 --shot 1")(validate)
    parent.add_typer(app, name="dataset")


def build(
    source: Annotated[str, typer.Argument(help="`glyphs`, a folder of images, or Parquet; also on s3://.")],
    out: Annotated[str, typer.Argument(help="Folder or s3:// URI to create.")],
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
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Decoding processes.", show_default="one per core")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", help="Decode only this part, e.g. 2/8; `dataset merge` joins the parts.", show_default=False
        ),
    ] = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Build an episode dataset from labelled examples, or with --shard a part of one."""
    from metalearn_core.data.build import build_dataset
    from metalearn_core.data.parts import build_part, parse_shard
    from metalearn_core.steps.data import build_at, build_options, earlier_place
    from pipelines.command_line.watch import watching

    options = build_options(
        split_file or "",
        **given(
            image_size=image_size,
            color=color,
            split_by=split_by,
            ratios=parse_ratios(ratios),
            split_seed=split_seed,
            rotations=rotations,
            min_examples=min_examples,
            max_unreadable=max_unreadable,
        ),
    )
    if shard is not None:
        number, of = parse_shard(shard)
        if split_from:
            raise UsageError("--split-from: is for `dataset merge`: a part of a build has no splits")
        if "://" in out:
            raise UsageError(f"{out}: a part of a build goes to a folder: give one")
        with watching(notices):
            part = build_part(source, Path(out), options, number, of, workers=workers)
        found = {"part": str(out), "shard": shard, "classes": len(part.classes), "unreadable": len(part.unreadable)}
        if json:
            print_json(found)
        else:
            answers.print(f"part {shard} of the build: {len(part.classes)} classes in {out}", soft_wrap=True)
        return
    with watching(notices):
        earlier = earlier_place(split_from or "")
        manifest = build_at(out, lambda at: build_dataset(source, at, options, workers=workers, split_from=earlier))
    _answer(out, manifest, json)


def merge(
    folders: Annotated[list[str], typer.Argument(help="All parts of a build, then the folder or s3:// URI to create.")],
    split_from: SplitFromOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Join the parts of a build into the dataset that a build at once would have made."""
    from metalearn_core.data.parts import merge_parts
    from metalearn_core.steps.data import build_at, earlier_place
    from pipelines.command_line.watch import watching

    *parts, out = folders
    if not parts:
        raise UsageError("dataset merge: expected the parts, and then the folder to make")
    with watching(notices):
        earlier = earlier_place(split_from or "")
        manifest = build_at(out, lambda at: merge_parts([Path(part) for part in parts], at, split_from=earlier))
    _answer(out, manifest, json)


def _answer(out: str, manifest: "Manifest", json: bool) -> None:
    from metalearn_core.steps.run import dataset_summary

    if json:
        print_json({**dataset_summary(out, manifest), "unreadable": len(manifest.unreadable)})
    else:
        _print(out)


def show(
    dataset: DatasetArgument,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Show what an episode dataset holds."""
    from metalearn_core.data.manifest import read_manifest

    if json:
        typer.echo(read_manifest(dataset).model_dump_json(indent=2))
    else:
        _print(dataset)


def _print(location: str) -> None:
    from metalearn_core.data.manifest import SPLITS, read_manifest

    manifest = read_manifest(location)
    shape = " × ".join(str(size) for size in manifest.spec.example_shape)
    answers.print(f"dataset {manifest.digest} of {manifest.source}", soft_wrap=True, markup=False)
    answers.print(f"{manifest.spec.modality}s {shape}, {manifest.spec.dtype}; split by {manifest.options.split_by}\n")
    rows = []
    for split in SPLITS:
        classes = manifest.of_split(split)
        counts = [entry.count for entry in classes]
        rows.append(
            [
                split,
                str(len(classes)),
                str(sum(len(entry.rotations) for entry in classes)),
                str(len({entry.domain for entry in classes})),
                f"{sum(counts):,}",
                f"{min(counts)}–{max(counts)}" if counts else "–",
            ]
        )
    print_table(["split ", "classes", "with rotations", "domains", "examples", "a class"], rows)
    for entry in manifest.unreadable[:5]:
        answers.print(f"unreadable: {entry.path}: {entry.reason}", soft_wrap=True, markup=False)
    if len(manifest.unreadable) > 5:
        answers.print(f"and {len(manifest.unreadable) - 5} more unreadable files (--json shows all)")


def validate(
    dataset: DatasetArgument,
    way: WayOption = None,
    shot: ShotOption = None,
    query: QueryOption = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Folder for the HTML page and the suite of checks.")
    ] = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Judge an episode dataset with Great Expectations; exit status 1 where a check that must pass does not."""
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.quality import validate_dataset, write_quality
    from metalearn_core.steps.data import wanted_shapes
    from metalearn_core.steps.requests import training_request
    from pipelines.command_line.watch import watching

    shape = {"way": 5, "shot": 1, "query": 15, **given(way=way, shot=shot, query=query)}
    shapes = wanted_shapes(training_request(**shape, episodes=1))
    opened = EpisodeDataset.open(dataset)
    with watching(notices):
        report = validate_dataset(opened, shapes)
    if page:
        write_quality(report, opened.manifest, page)
    if json:
        print_json(report.model_dump(mode="json", exclude={"suite"}))
    else:
        rows = [
            [
                "passed" if check.passed else ("failed" if check.blocking else "warning"),
                check.name,
                str(check.observed),
                str(check.expected),
            ]
            for check in report.checks
        ]
        print_table(["", "check ", "found ", "wanted "], rows)
    raise typer.Exit(0 if report.passed else 1)
