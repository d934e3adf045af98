import numpy as np
import pytest

from metalearn_core.report import explained
from metalearn_core.report.charts import COLOURS


def test_neighbours_say_whose_class_they_are(content, album):
    for one in explained.answers(content, album):
        assert sum(near.own for near in one.nearest) == 1, "5-way 1-shot: one support example of each class"
        assert sum(near.predicted for near in one.nearest) == 1
        assert one.answer.right == any(near.own and near.predicted for near in one.nearest)
        assert one.picture.name == one.name


def test_without_an_explanation_there_is_nothing_to_show(content, album):
    bare = content.model_copy(update={"learners": content.learners[:1]})
    assert explained.answers(bare, album) == ()
    assert explained.adaptation(bare) is None
    assert explained.class_map(bare, album) is None


def test_the_map_keeps_distances_in_proportion(content, album):
    found = explained.class_map(content, album)
    points = {(point.class_id, point.rotation): (point.x, point.y) for point in found.map.points}
    names = {album.name(*identity): place for identity, place in points.items()}
    shown = np.array([(place.left, place.top) for place in found.places])
    true = np.array([names[place.name] for place in found.places])
    assert shown.min() >= 0
    assert shown.max() <= 100
    pixels = shown * [1, -1 / found.aspect]  # of a map that is 100 wide
    distances = np.linalg.norm(pixels[:, None] - pixels, axis=-1)
    expected = np.linalg.norm(true[:, None] - true, axis=-1)
    scale = distances.max() / expected.max()
    np.testing.assert_allclose(distances, scale * expected, atol=1e-6)


def test_no_picture_on_the_map_hides_another(content, album):
    found = explained.class_map(content, album)
    pictured = [place for place in found.places if place.picture]
    assert 1 < len(pictured) <= len(found.places)
    for number, one in enumerate(pictured):
        for other in pictured[:number]:
            apart = abs(one.left - other.left), abs(one.top - other.top) / found.aspect
            assert max(apart) >= found.picture_width


def test_domains_have_colours_of_their_own(content, album):
    found = explained.class_map(content, album)
    assert list(found.colours) == ["wide", "broad", "tiny"], "the largest first"
    assert list(found.colours.values()) == list(COLOURS[:3])
    domain = {album.name(entry.id, turns): entry.domain for entry in content.manifest.classes for turns in range(4)}
    assert all(place.colour == found.colours[domain[place.name]] for place in found.places)


def test_learners_that_move_no_weights_are_named(content):
    found = explained.adaptation(content)
    assert found.unmoved == ("protonet",)
    assert found.from_zero == {"maml": ("head",)}
    losses = content.learners[2].explanation.adaptation.support_losses
    assert f"maml ends at {losses[-1].loss:.3g}" in found.losses
    assert [step.steps for step in losses] == [0, 1, 2, 3]


@pytest.mark.parametrize("layer", ["blocks.0.conv", "blocks.3.norm"])
def test_layers_are_named_on_the_chart(content, layer):
    assert layer in explained.adaptation(content).layers
