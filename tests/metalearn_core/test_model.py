import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from metalearn_core.bundle import save_bundle
from metalearn_core.data.decode import decode_image
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.learners import LearnerSpec, learner_names, make_learner
from metalearn_core.model import load_classifier, load_model

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (9, 1, 28, 28), dtype=np.uint8)
QUERY = RANDOM.integers(0, 256, (4, 1, 28, 28), dtype=np.uint8)
LABELS = ["cat", "dog", "cat", "eel", "dog", "cat", "cat", "eel", "cat"]


def spec(channels=1):
    return DatasetSpec(
        modality="image",
        example_shape=(channels, 28, 28),
        dtype="uint8",
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
        train_classes=20,
    )


def model(folder, learner="protonet", channels=1, way=5, dataset=None):
    dataset = dataset or spec(channels)
    backbone = "mlp" if dataset.modality == "vector" else "conv4"
    description = LearnerSpec(learner=learner, backbone=backbone)
    made = make_learner(description, dataset, way=way)
    save_bundle(folder, made, description, episode=EpisodeShape(5, 1, 5), lineage={"dataset_digest": "d"})
    return load_model(folder)


@pytest.fixture(scope="module")
def protonet(tmp_path_factory):
    return model(tmp_path_factory.mktemp("model") / "b")


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return model(tmp_path_factory.mktemp("model") / "b", channels=3)


def test_an_answer_that_is_no_number_is_refused_and_its_query_named(tmp_path):
    vectors = DatasetSpec(
        modality="vector", example_shape=(4,), dtype="float32", mean=(0.0,) * 4, std=(1.0,) * 4, train_classes=20
    )
    support = RANDOM.normal(size=(6, 4)).astype(np.float32)
    classifier = model(tmp_path / "b", dataset=vectors).adapt(support, list("ababab"))
    with pytest.raises(UsageError, match=r"^query_x\[1\]: the model's answer is no number"):
        classifier.predict(np.array([[1.0] * 4, [3e38, -3e38, 3e38, -3e38]], np.float32))


def test_queries_about_many_classes_get_the_same_answers_a_few_at_a_time(protonet, monkeypatch):
    classifier = protonet.adapt(X, LABELS)
    whole = classifier.predict(QUERY).probabilities
    monkeypatch.setattr("metalearn_core.model.ANSWERS_AT_ONCE", 3)
    np.testing.assert_allclose(classifier.predict(QUERY).probabilities, whole, rtol=1e-5)


def test_the_backbone_sees_each_example_once(protonet, monkeypatch):
    seen, embed = [], protonet.learner.embed
    monkeypatch.setattr(protonet.learner, "embed", lambda x: seen.append(len(x)) or embed(x))
    classifier = protonet.adapt(X, LABELS)
    classifier.answer(QUERY)
    assert seen == [len(X), len(QUERY)]
    classifier.answer(QUERY)
    assert seen == [len(X), len(QUERY), len(QUERY)]


@pytest.mark.parametrize("name", [name for name in learner_names() if name not in {"snail", "finetune"}])
def test_answers_are_the_learners_own_whatever_is_computed_once(name, tmp_path):
    """(snail is built for one shot; finetune's steps are random in their order, and tested by themselves.)"""
    made = model(tmp_path / "b", learner=name, way=3)
    x, query, y = (
        torch.from_numpy(X),
        torch.from_numpy(QUERY),
        torch.tensor([["cat", "dog", "eel"].index(n) for n in LABELS]),
    )
    found, near = made.adapt(X, LABELS).answer(QUERY)
    with torch.no_grad():
        state = made.learner.adapt(x[None], y[None], way=3)
        logits = made.learner.predict(state, query[None])[0].double()
        support, asked = (made.learner.compared_features(state, one[None])[0].double() for one in (x, query))
    np.testing.assert_allclose(found.probabilities, logits.softmax(dim=-1).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        near.distances, torch.cdist(asked, support).sort(dim=1).values[:, :3], rtol=1e-4, atol=1e-4
    )


def test_prediction_is_the_nearest_mean_of_the_learners_own_features(protonet):
    with torch.no_grad():
        features = protonet.learner.embed(torch.from_numpy(np.concatenate([X, QUERY]))).double().numpy()
    classes = ["cat", "dog", "eel"]
    labels = np.array(LABELS)
    means = np.stack([features[:9][labels == name].mean(axis=0) for name in classes])
    distances = ((features[9:, None] - means) ** 2).sum(axis=-1)
    likelihood = np.exp(-(distances - distances.min(axis=1, keepdims=True)))
    prediction = protonet.predict(X, LABELS, QUERY)
    assert prediction.classes == classes
    assert prediction.labels == [classes[column] for column in distances.argmin(axis=1)]
    np.testing.assert_allclose(
        prediction.probabilities, likelihood / likelihood.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, rtol=1e-12)


def test_support_examples_are_recognised(protonet):
    assert protonet.predict(X[:3], [("a", 1), None, 7], X[:3]).labels == [("a", 1), None, 7]


def test_every_form_of_the_same_images_gives_the_same_answer(protonet, tmp_path):
    paths = []
    for number, image in enumerate(X):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image[0]).save(paths[-1])
    forms = {
        "without channels": X[:, 0],
        "channels last": X.transpose(0, 2, 3, 1),
        "floats": X.astype(np.float64) / 255,
        "whole numbers": X.astype(np.int64),
        "tensor": torch.from_numpy(X),
        "list of arrays": list(X[:, 0]),
        "pictures": [Image.fromarray(image[0]) for image in X],
        "paths": paths,
        "paths as text": [str(path) for path in paths],
        "mixed": [paths[0], Image.fromarray(X[1, 0]), *X[2:]],
    }
    expected = protonet.predict(X, LABELS, QUERY)
    for form, support in forms.items():
        found = protonet.predict(support, LABELS, QUERY)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5, err_msg=form)


def test_files_become_the_pixels_that_the_build_stores(protonet, colour, tmp_path):
    path = tmp_path / "picture.jpg"
    pixels = RANDOM.integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    np.testing.assert_array_equal(colour.tensor([path], "x")[0], decode_image(path, 28, "rgb"))
    np.testing.assert_array_equal(protonet.tensor([path], "x")[0], decode_image(path, 28, "grey"))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(colour.tensor([opened], "x")[0], decode_image(path, 28, "rgb"))


def test_arrays_of_another_size_and_colour_are_treated_like_their_pictures(protonet, colour, tmp_path):
    pixels = RANDOM.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    for one in (protonet, colour):
        expected = one.tensor(paths, "x")
        for array in (pixels, pixels.transpose(0, 3, 1, 2), pixels / 255, list(pixels)):
            np.testing.assert_array_equal(one.tensor(array, "x"), expected)


def test_queries_do_not_influence_one_another(protonet, tmp_path):
    for one, labels in ((protonet, LABELS), (model(tmp_path / "b", "maml", way=3), LABELS)):
        classifier = one.adapt(X, labels)
        together = classifier.predict(QUERY).probabilities
        alone = np.concatenate([classifier.predict(QUERY[i : i + 1]).probabilities for i in range(4)])
        np.testing.assert_allclose(alone, together, atol=1e-5)


def test_an_explanation_names_the_support_examples_that_are_nearest(protonet):
    explanation = protonet.adapt(X, LABELS).explain(QUERY, neighbours=4)
    with torch.no_grad():
        features, queries = (protonet.learner.embed(torch.from_numpy(x)).double().numpy() for x in (X, QUERY))
    distances, places = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(features).kneighbors(queries)
    np.testing.assert_array_equal(explanation.nearest, places)
    np.testing.assert_allclose(explanation.distances, distances, rtol=1e-4)
    assert explanation.prediction.labels == protonet.predict(X, LABELS, QUERY).labels
    nearest = explanation.prototype_distances.argmin(axis=1)
    assert [explanation.prediction.classes[column] for column in nearest] == explanation.prediction.labels
    assert explanation.adaptation.layers == ()


def test_an_explanation_says_what_adapting_moved(tmp_path):
    explanation = model(tmp_path / "b", "maml", way=3).adapt(X, LABELS).explain(QUERY)
    assert explanation.nearest.shape == explanation.distances.shape == (4, 3)
    assert explanation.prototype_distances is None
    assert [layer.layer for layer in explanation.adaptation.layers][-1] == "head"
    losses = [step.loss for step in explanation.adaptation.support_losses]
    assert losses[0] == pytest.approx(np.log(3), rel=1e-5), "the head starts at zero"
    assert losses[-1] < losses[0]
    with pytest.raises(UsageError, match="neighbours must be at least 1, got 0"):
        model(tmp_path / "c").adapt(X, LABELS).explain(QUERY, neighbours=0)


def test_a_learner_of_fixed_way_says_which(tmp_path):
    maml = model(tmp_path / "b", "maml", way=5)
    with pytest.raises(UsageError, match="maml was trained for exactly 5 classes, got 3"):
        maml.adapt(X, LABELS)


def test_vectors_are_taken_as_they_are(tmp_path):
    dataset = DatasetSpec(
        modality="vector", example_shape=(6,), dtype="float32", mean=(0.0,) * 6, std=(1.0,) * 6, train_classes=9
    )
    one = model(tmp_path / "b", dataset=dataset)
    x = RANDOM.normal(size=(5, 6)) * 10
    assert one.predict(x, [1, 2, 3, 4, 5], x).labels == [1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match=r"query_x: expected \(n, 6\), got \(5, 7\)"):
        one.predict(x, [1, 2, 3, 4, 5], np.zeros((5, 7)))


def with_nan():
    values = X.astype(np.float32) / 255
    values[4, 0, 3, 3] = np.nan
    return values


@pytest.mark.parametrize(
    ("support", "labels", "query", "words"),
    [
        (with_nan(), LABELS, QUERY, "support_x: .*NaN or infinity in example 4"),
        (X, LABELS[:-1], QUERY, "support_y: expected a label for each of the 9 examples, got 8"),
        (X, ["cat"] * 9, QUERY, "support_y: expected at least 2 classes, got 1"),
        (X, [["cat"]] * 9, QUERY, "support_y: .*hashed"),
        (X, "abcdefghi", QUERY, "support_y: .*sequence of labels"),
        (X, LABELS, QUERY[0, 0, 0], "query_x: expected"),
        (X, LABELS, X[:, :, None], r"query_x: expected .* got \(9, 1, 1, 28, 28\)"),
        (X, LABELS, RANDOM.random((2, 5, 28, 28)), r"query_x: .*\(2, 5, 28, 28\)"),
        (X, LABELS, QUERY.astype(np.float32), "query_x: .*got values from"),
        (X, LABELS, QUERY.astype(np.int64) * 3, "query_x: expected whole numbers in 0 … 255"),
        (X, LABELS, QUERY[:0], "query_x: expected at least one example"),
        (X, LABELS, [], "query_x: expected at least one example"),
        (X, LABELS, ["nowhere.png"], r"query_x\[0\]: there is no file nowhere.png"),
        (X, LABELS, "nowhere.png", "query_x: expected a sequence of examples, got a single str"),
        (X, LABELS, [object()], r"query_x\[0\]: expected numbers"),
        (X, LABELS, np.zeros((2, 0, 28)), "query_x: expected images with pixels"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(protonet, support, labels, query, words):
    with pytest.raises(UsageError, match=words) as error:
        protonet.predict(support, labels, query)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_image_is_named(protonet, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(UsageError, match=r"query_x\[0\]: .*notes\.png cannot be read"):
        protonet.predict(X, LABELS, [path])


@pytest.mark.parametrize("learner", [name for name in learner_names() if name not in {"finetune", "snail"}])
def test_a_classifier_comes_back_from_its_bundle_with_its_answers(learner, tmp_path):
    made = model(tmp_path / "b", learner, way=3).adapt(X, LABELS)
    made.save(tmp_path / "mine")
    back = load_classifier(tmp_path / "mine")
    found, expected = back.predict(QUERY), made.predict(QUERY)
    assert (found.labels, found.classes) == (expected.labels, expected.classes)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(back.nearest(QUERY).nearest, made.nearest(QUERY).nearest)


def test_a_bundle_with_a_support_set_is_still_the_model(protonet, tmp_path):
    protonet.adapt(X, LABELS).save(tmp_path / "mine")
    again = load_model(tmp_path / "mine")
    assert (again.has_support, protonet.has_support) == (True, False)
    expected = protonet.predict(X[:2], ["a", "b"], QUERY).probabilities
    np.testing.assert_array_equal(again.predict(X[:2], ["a", "b"], QUERY).probabilities, expected)
    again.adapt(X[:2], ["a", "b"]).save(tmp_path / "other")
    assert load_classifier(tmp_path / "other").classes == ["a", "b"]


def test_labels_that_json_knows_are_kept_and_others_are_refused(protonet, tmp_path):
    labels = ["cat", 7, 2.5, None, False]
    protonet.adapt(X[:5], labels).save(tmp_path / "mine")
    kept = load_classifier(tmp_path / "mine").classes
    assert kept == labels
    assert list(map(type, kept)) == list(map(type, labels))
    with pytest.raises(UsageError, match=r"label \('a', 1\) cannot be saved"):
        protonet.adapt(X[:2], [("a", 1), "b"]).save(tmp_path / "tuple")
    assert not (tmp_path / "tuple").exists()
    with pytest.raises(UsageError, match="label nan cannot be saved"):
        protonet.adapt(X[:2], [float("nan"), "b"]).save(tmp_path / "nan")


def test_what_is_no_classifier_is_said(protonet, tmp_path):
    with pytest.raises(UsageError, match="has no support set in it"):
        load_classifier(protonet.bundle)
    protonet.adapt(X, LABELS).save(tmp_path / "mine")
    file = tmp_path / "mine" / "adapted.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(MetalearnError, match=r"adapted.safetensors is not what .* says"):
        load_classifier(tmp_path / "mine")
    file.unlink()
    with pytest.raises(MetalearnError, match=r"adapted.safetensors is missing"):
        load_model(tmp_path / "mine")


def test_a_classifier_of_a_model_that_was_replaced_is_not_saved(tmp_path):
    classifier = model(tmp_path / "b").adapt(X, LABELS)
    model(tmp_path / "b", way=3, learner="relationnet")
    with pytest.raises(MetalearnError, match="load it again"):
        classifier.save(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
