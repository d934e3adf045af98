"""What a request may say: mistakes are told in little memory, and what would take too much work is refused."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from metalearn_core.bundle import save_bundle
from metalearn_core.data.decode import decode_image
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.model import load_model
from metalearn_core.serving import episodes
from metalearn_core.serving.application import Episodes
from metalearn_core.serving.episodes import Episode, Example, LabelledExample, Reader, answer

SPEC = DatasetSpec(
    modality="image", example_shape=(1, 28, 28), dtype="uint8", mean=(0.4,), std=(0.3,), train_classes=20
)
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, description = tmp_path_factory.mktemp("model") / "b", LearnerSpec(learner="protonet")
    made = make_learner(description, SPEC)
    save_bundle(folder, made, description, episode=EpisodeShape(2, 1, 5), lineage={"dataset_digest": "d"})
    return load_model(folder)


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def episode():
    images = [encoded(Image.fromarray(RANDOM.integers(0, 256, (28, 28), dtype=np.uint8))) for _ in range(3)]
    support = [LabelledExample(label=label, image=image) for label, image in zip("ab", images, strict=False)]
    return Episode(support=support, query=[Example(image=images[2])])


GOOD = {"label": "a", "image": ""}
MANY = 10_000


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [{"support": [{"label": "a", "vector": [""] * MANY}], "query": []}]},
        {"inputs": [{"support": [dict.fromkeys(map(str, range(MANY)))], "query": []}]},
        {"inputs": [{"support": [], "query": [dict.fromkeys(map(str, range(MANY)))]}]},
        {"inputs": [{"support": [{"label": 1}] * 1000, "query": [{"image": 1}] * 1000}]},
        {"inputs": [{"support": [], "query": [], **dict.fromkeys(map(str, range(MANY)))}]},
        {"inputs": [{}] * 100},
    ],
)
def test_of_many_mistakes_few_are_told(body):
    with pytest.raises(ValidationError) as caught:
        Episodes.model_validate(body)
    assert caught.value.error_count() <= 2


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({**GOOD, "label": "a" * 201}, "at most 200 characters"),
        ({**GOOD, "label": "\ud800"}, "valid string"),
        ({"label": "a", "vector": [0.0] * 100_001}, "at most 100000 items"),
        ({**GOOD, "vector": [], "picture": ""}, "expected no fields but image, vector, label, got 4 fields"),
    ],
)
def test_an_example_that_would_be_repeated_or_kept_at_length_is_refused(example, words):
    assert LabelledExample.model_validate({**GOOD, "label": "é" * 200})
    with pytest.raises(ValidationError, match=words):
        LabelledExample.model_validate(example)


def test_the_examples_of_all_episodes_are_counted_before_one_is_read(model):
    unread = Episode(support=[LabelledExample(label="a", image="no picture")] * 667, query=[])
    with pytest.raises(UsageError, match="at most 2,000 examples in all, got 2,001: send fewer episodes at once"):
        answer(model, [unread] * 3)


def test_work_ends_between_two_episodes_where_it_may_not_go_on(model):
    class EndedError(Exception):
        pass

    asked = []

    def go_on():
        asked.append(len(asked))
        if len(asked) == 3:
            raise EndedError

    unread = Episode(support=[LabelledExample(label="a", image="no picture")], query=[])
    with pytest.raises(EndedError):
        answer(model, [episode(), unread], go_on)
    with pytest.raises(UsageError, match=r"inputs\[1\]"):
        answer(model, [episode(), unread])


def test_text_that_is_not_ascii_is_no_base64(model):
    with pytest.raises(UsageError, match=r"^query\[0\]\.image: it is not base64$"):
        Reader(model).examples([Example(image="é")], "query")


def test_one_image_has_fewer_pixels_than_all_of_a_request(model, monkeypatch):
    wide, square = (Example(image=encoded(Image.new("1", size))) for size in ((4001, 4000), (4000, 4000)))
    with pytest.raises(UsageError, match=r"^query\[0\]\.image: an image has at most 16 megapixels"):
        Reader(model).examples([wide], "query")
    monkeypatch.setattr(episodes, "MOST_PIXELS", 31_000_000)
    with pytest.raises(UsageError, match=r"^query\[1\]\.image: the images of a request have at most 31 megapixels"):
        Reader(model).examples([square] * 2, "query")


def test_a_large_photograph_becomes_the_pixels_that_the_build_stores(model):
    photograph = Image.fromarray(RANDOM.integers(0, 256, (400, 300, 3), dtype=np.uint8))
    text = encoded(photograph, "JPEG")
    [found] = Reader(model).examples([Example(image=text)], "query")
    np.testing.assert_array_equal(found, decode_image(io.BytesIO(base64.b64decode(text)), 28, "grey"))
