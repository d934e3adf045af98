"""A build that is shared out over several steps is the build at once; what is unfit for its episodes is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.steps.data import build_episodes, build_options, decode_part, validate_dataset
from metalearn_core.steps.requests import TrainingRequest, learner_items
from metalearn_core.storage.objects import Prefix
from metalearn_core.storage.place import Place

OPTIONS = {"image_size": 8, "color": "grey", "split_by": "class", "ratios": (0.5, 0.25, 0.25)}


@pytest.fixture
def source(tmp_path: Path) -> str:
    for name in "abcdefgh":
        folder = tmp_path / "source" / name
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng([ord(name), number]).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(tmp_path / "source")


def test_parts_that_were_decoded_apart_make_the_dataset_of_a_build_at_once(tmp_path: Path, source: str) -> None:
    options = build_options("", **OPTIONS)
    _, at_once = build_episodes(source, options, Place(tmp_path / "one"))
    shards = ["1/3", "2/3", "3/3"]
    for shard in shards:
        decode_part(source, options, Place(tmp_path / "several"), shard)
    assert len(list((tmp_path / "several").rglob("part.json"))) == 3
    _, joined = build_episodes(source, options, Place(tmp_path / "several"), shards=shards)
    assert joined == at_once
    assert not list((tmp_path / "several").rglob("part.json"))  # they are as large as the dataset
    decode_part(source, options, Place(tmp_path / "several"), "1/3")
    assert not list((tmp_path / "several").rglob("part.json"))  # the source is unchanged, and built


def test_a_part_that_was_lost_is_decoded_by_the_build(tmp_path: Path, source: str) -> None:
    options = build_options("", **OPTIONS)
    _, at_once = build_episodes(source, options, Place(tmp_path / "one"))
    decode_part(source, options, Place(tmp_path / "several"), "1/2")
    _, joined = build_episodes(source, options, Place(tmp_path / "several"), shards=["1/2", "2/2"])
    assert joined.digest == at_once.digest


def test_the_verdict_on_a_dataset_in_a_bucket_is_found_there_by_others_than_the_step(
    small_dataset: EpisodeDataset, bucket: str
) -> None:
    prefix = Prefix.parse(f"{bucket}/dataset")
    files = [path for path in small_dataset.folder.rglob("*") if path.is_file()]
    prefix.upload({path.relative_to(small_dataset.folder).as_posix(): path for path in files})
    with pytest.raises(MetalearnError, match="is not fit for these episodes") as caught:
        validate_dataset(str(prefix), small_dataset.digest, TrainingRequest(way=500, shot=1, query=1))
    _, _, page = str(caught.value).partition("; see ")
    address = Prefix.parse(page)
    assert str(prefix) in page
    assert address.parent.read(address.name).lstrip().startswith(b"<!")


def test_learners_are_looked_at_with_the_data_before_any_is_trained(small_dataset: EpisodeDataset) -> None:
    where, request = (str(small_dataset.folder), small_dataset.digest), TrainingRequest(way=3, shot=1, query=3)
    fit, unfit = (
        '{"learner": "protonet", "backbone": "mlp"}',
        '{"learner": "matchingnet", "backbone_options": {"blocks": 6}}',
    )
    assert (validate_dataset(*where, request, learner_items([fit])) / "quality.json").is_file()
    with pytest.raises(UsageError, match=r"^matchingnet: conv4\.blocks"):
        validate_dataset(*where, request, learner_items([fit, unfit]))
