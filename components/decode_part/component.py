"""The step that decodes one part of a source, where the build is shared out over several pods."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def decode_part(
    source: str,
    storage: str,
    shard: str,
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
) -> None:
    """Decode every n-th class of a source; `build_episodes` joins the parts. Nothing is done where that was built.

    Args:
        source: `glyphs`, a folder of images, or a Parquet file or folder.
        storage: where datasets, results and checkpoints are kept.
        shard: which part, as `1/4`.
        image_size: height and width of the stored images, in pixels.
        color: `grey` or `rgb`: a part does not see every image.
        split_by: `class`, `domain`, or `auto`: the source decides.
        split_file: CSV with the columns class and split; overrides `split_by`.
        split_from: manifest of an older dataset, whose classes keep their splits.
        ratios: shares of the classes for train, validation and test.
        split_seed: which classes go where.
        rotations: splits in which quarter turns are further classes: `train`, `all` or `none`.
        min_examples: classes with fewer examples are left out.
        max_unreadable: the largest share of unreadable files that is put up with.
    """
    from metalearn_core.steps import data
    from metalearn_core.steps.frame import step
    from metalearn_core.storage.place import Place

    with step("decode_part", shard):
        options = data.build_options(
            split_file,
            image_size=image_size,
            color=color,
            split_by=split_by,
            ratios=ratios,
            split_seed=split_seed,
            rotations=rotations,
            min_examples=min_examples,
            max_unreadable=max_unreadable,
        )
        data.decode_part(source, options, Place.at(storage), shard, split_from)
