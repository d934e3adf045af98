"""What adapting takes of memory is told beforehand, and a support set that takes too much is refused."""

import subprocess
import sys

import pytest

from metalearn_core.bundle import save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.model import load_model
from metalearn_core.serving import episodes, footprint

SPEC = DatasetSpec(
    modality="image", example_shape=(1, 28, 28), dtype="uint8", mean=(0.4,), std=(0.3,), train_classes=20
)
MEASURE = """
import sys, torch
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.memory import PeakMemory
from metalearn_core.serving.footprint import bytes_an_example

spec = DatasetSpec.model_validate_json(sys.argv[3])
learner = make_learner(LearnerSpec(learner=sys.argv[1], backbone=sys.argv[2]), spec, way=5).eval()
count = int(sys.argv[4])
x, y = torch.randint(0, 255, (1, count, *spec.example_shape), dtype=torch.uint8), torch.arange(count)[None] % 5
with torch.no_grad():
    learner.adapt(x[:, :5], y[:, :5], way=5)
    with PeakMemory() as before:
        pass
    with PeakMemory() as after:
        learner.adapt(x, y, way=5)
print((after.resident_bytes - before.resident_bytes) / count, bytes_an_example(learner))
"""


@pytest.mark.parametrize(
    ("learner", "backbone", "examples"),
    [("maml", "conv4", 200), ("maml", "resnet12", 20), ("cnp", "conv4", 200)],
)
def test_a_learner_that_is_no_metric_takes_about_what_is_told(learner, backbone, examples):
    command = [sys.executable, "-c", MEASURE, learner, backbone, SPEC.model_dump_json(), str(examples)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    measured, told = map(float, done.stdout.split())
    assert measured / 2.5 < told < measured * 2.5


def test_a_learner_that_embeds_examples_takes_no_more_for_more_of_them():
    assert footprint.bytes_an_example(make_learner(LearnerSpec(learner="protonet"), SPEC)) == 0


def test_a_request_can_ask_for_so_many_probabilities_and_no_more(tmp_path):
    description = LearnerSpec(learner="protonet")
    save_bundle(
        tmp_path / "b",
        make_learner(description, SPEC),
        description,
        episode=EpisodeShape(2, 1, 5),
        lineage={"dataset_digest": "d"},
    )
    reader = episodes.Reader(load_model(tmp_path / "b"))
    reader.count(900, 100, "inputs[0].")
    with pytest.raises(UsageError, match=r"^inputs\[1\]\.query: the answers to a request have at most 100,000"):
        reader.count(101, 100, "inputs[1].")


def test_a_support_set_that_takes_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    description = LearnerSpec(learner="maml")
    save_bundle(
        tmp_path / "b",
        make_learner(description, SPEC, way=2),
        description,
        episode=EpisodeShape(2, 1, 5),
        lineage={"dataset_digest": "d"},
    )
    model = load_model(tmp_path / "b")
    each = footprint.bytes_an_example(model.learner)
    monkeypatch.setattr(footprint, "MOST_BYTES", 10.5 * each)
    unread = [episodes.LabelledExample(label=str(number % 2), image="no picture") for number in range(11)]
    with pytest.raises(UsageError, match=r"inputs\[3\]\.support: got 11 examples, each of which .* send at most 10$"):
        episodes.adapted(model, episodes.Reader(model), unread, "inputs[3].")
