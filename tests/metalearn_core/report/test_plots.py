"""The report's pictures: PNG files that show what the page shows."""

import io

import numpy as np
from PIL import Image

from metalearn_core.report.plots import comparisons, most_confused


def opened(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def test_the_learners_are_compared_in_pictures_of_their_own(content):
    pictures = comparisons(content)
    assert pictures.keys() == {"validation-accuracy", "training-loss", "accuracy-by-class", "calibration"}
    for name, picture in pictures.items():
        pixels = opened(picture)
        assert (pixels[0, 0] == 255).all(), f"{name}: on white, whatever the page's colours"
        assert (pixels < 100).any(), name


def test_the_most_confused_pairs_are_shown_with_an_example_of_each_class(content, dataset):
    [(name, picture)] = most_confused(content.selected, dataset).items()
    assert name == "most-confused"
    pixels = opened(picture)
    at_the_left = pixels[60:, 10:90]
    assert len(np.unique(at_the_left)) > 50, "examples have all greys; letters and bars few"


def test_a_learner_without_a_mistake_has_no_such_picture(content, dataset):
    evaluation = content.selected.evaluation.model_copy(update={"confusions": ()})
    assert most_confused(content.selected.model_copy(update={"evaluation": evaluation}), dataset) == {}
