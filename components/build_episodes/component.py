"""The step that turns a source of labelled examples into an episode dataset."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def build_episodes(
    source: str,
    storage: str,
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
    shards: list[str],
    dataset: Output[Dataset],
) -> None:
    """Build an episode dataset, or find the one that was built from the same content with the same options.

    Args:
        source: `glyphs`, a folder of images, or a Parquet file or folder.
        storage: where datasets, results and checkpoints are kept.
        image_size: height and width of the stored images, in pixels.
        color: `grey`, `rgb`, or `auto`: grey where every image is.
        split_by: `class`, `domain`, or `auto`: the source decides.
        split_file: CSV with the columns class and split; overrides `split_by`.
        split_from: manifest of an older dataset, whose classes keep their splits.
        ratios: shares of the classes for train, validation and test.
        split_seed: which classes go where.
        rotations: splits in which quarter turns are further classes: `train`, `all` or `none`.
        min_examples: classes with fewer examples are left out.
        max_unreadable: the largest share of unreadable files that is put up with.
        shards: the parts that `decode_part` has decoded, as `1/4`; none: the source is decoded here.
        dataset: a small pointer to the dataset; the data themselves go by address.
    """
    from pathlib import Path

    from metalearn_core.steps import data
    from metalearn_core.steps.frame import step
    from metalearn_core.storage.place import Place

    with step("build_episodes"):
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
        location, manifest = data.build_episodes(source, options, Place.at(storage), split_from, shards)
        data.write_pointer(Path(dataset.path), location, manifest)
        dataset.metadata["digest"] = manifest.digest
        dataset.metadata["uri"] = location
