"""Trained on one domain, tested on another: what is a row, what is a column, and what is done once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn_core.bundle import load_bundle, read_bundle, read_training_images
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.manifest import BuildOptions, Split
from metalearn_core.data.subset import only_domain, split_hashes
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.evaluation.matrix import Cell, Matrix, learner_matrix, write_matrix_page
from metalearn_core.steps.matrix import cross_domain_matrix
from metalearn_core.steps.requests import EvaluationRequest, TrainingRequest, TrainingResources
from metalearn_core.storage.place import Place

ITEM = {"learner": "protonet", "options": {}, "backbone": "mlp", "backbone_options": {"hidden": [16]}}
REQUEST = TrainingRequest(way=3, shot=1, query=2, train_way=3, train_shot=1, train_query=2, episodes=4)
EVALUATION = EvaluationRequest(way=3, shot=1, query=2, episodes=30)
CLASSES: dict[str, dict[Split, int]] = {
    "red": {"train": 4, "test": 4},
    "blue": {"train": 4, "test": 3},
    "poor": {"train": 2, "test": 4},
    "tiny": {"train": 4, "test": 2},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    folder, splits = tmp_path_factory.mktemp("domains"), []
    for domain, counts in CLASSES.items():
        for split, count in counts.items():
            for number in range(count):
                name = f"{domain}/{split}{number}"
                splits.append((name, split))
                (folder / "source" / name).mkdir(parents=True)
                random = np.random.default_rng(list(name.encode()))
                pattern = random.integers(0, 256, (8, 8))
                for example in range(4):
                    pixels = np.clip(pattern + random.normal(0, 50, (8, 8)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / "source" / name / f"{example}.png")
    options = BuildOptions(image_size=8, split_file=tuple(splits), rotations="none")
    build_dataset(str(folder / "source"), folder / "dataset", options, workers=1)
    return EpisodeDataset.open(folder / "dataset")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.at(str(tmp_path_factory.mktemp("storage")))


def run(
    dataset: EpisodeDataset, storage: Place, *domains: str, others: tuple = (), request: TrainingRequest = REQUEST
) -> Matrix:
    resources = TrainingResources(device="cpu")
    return cross_domain_matrix(str(dataset.folder), [ITEM, *others], request, EVALUATION, resources, storage, domains)


@pytest.fixture(scope="module")
def matrix(dataset: EpisodeDataset, storage: Place) -> Matrix:
    return run(dataset, storage)


def bundles(storage: Place) -> dict[str, Path]:
    """The bundles that were made, by the digest of the domain that they were trained on."""
    made = storage.folder.glob("results/domain-training/*/bundle")
    return {read_bundle(path).lineage.dataset_digest: path for path in made}


def test_domains_with_too_few_classes_are_left_out_with_the_reason(matrix: Matrix) -> None:
    assert matrix.train_domains == ("blue", "red", "tiny")
    assert matrix.test_domains == ("blue", "poor", "red")
    assert len(matrix.left_out) == 2
    assert matrix.left_out[0].startswith("poor is not trained on: way 3")
    assert matrix.left_out[1].startswith("tiny is not tested on: way 3")


def test_a_cell_is_the_evaluation_of_the_rows_model_on_the_columns_classes(
    dataset: EpisodeDataset, storage: Place, matrix: Matrix
) -> None:
    [learner] = matrix.learners
    made = bundles(storage)
    protocol = Protocol(way=3, shot=1, query=2, episodes=30, domain_episodes=0)
    for row in matrix.train_domains:
        model, _ = load_bundle(made[only_domain(dataset, row).digest])
        for column in matrix.test_domains:
            expected = evaluate(model, only_domain(dataset, column), protocol)
            cell = learner.cell(row, column)
            assert (cell.accuracy, cell.ci95, cell.ece) == (expected.accuracy, expected.ci95, expected.ece)
    assert learner.compared == ("blue", "red"), "poor is not trained on: it has no cell of its own"
    assert learner.within == pytest.approx(np.mean([learner.cell(name, name).accuracy for name in learner.compared]))
    others = [("red", "blue"), ("tiny", "blue"), ("blue", "red"), ("tiny", "red")]
    assert learner.across == pytest.approx(np.mean([learner.cell(*other).accuracy for other in others]))


def cells(accuracies: dict[str, float | None]) -> tuple[Cell, ...]:
    return tuple(
        Cell(trained_on=row, tested_on=column, accuracy=accuracy, ci95=0.01, ece=0.1)
        for (row, column), accuracy in accuracies.items()
    )


def test_means_within_and_across_are_over_the_same_columns_each_weighing_the_same() -> None:
    """The letters are domains: trained on, tested on. Column c is hard, and no row is trained on it."""
    easy = {"aa": 0.9, "ba": 0.7, "da": 0.5, "bb": 0.8, "ab": 0.4, "db": None}
    made = learner_matrix("protonet", cells({**easy, "ac": 0.1, "bc": 0.1, "dc": 0.1}))
    assert made.compared == ("a", "b")
    assert (made.within, made.across) == pytest.approx(((0.9 + 0.8) / 2, ((0.7 + 0.5) / 2 + 0.4) / 2))


def test_a_mean_without_the_other_is_over_all_that_there_is() -> None:
    made = learner_matrix("protonet", cells({"ab": 0.5, "ac": 0.7, "aa": None}))
    assert (made.compared, made.within, made.across) == ((), None, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"learner": "snail", "options": {"shot": 2}}, r"set snail\.shot=1"),
        ({"learner": "matchingnet", "backbone_options": {"blocks": 6}}, r"^matchingnet: conv4\.blocks"),
    ],
)
def test_a_learner_that_cannot_be_trained_is_refused_before_any_is(
    dataset: EpisodeDataset, tmp_path: Path, other: dict, complaint: str
) -> None:
    item = {"options": {}, "backbone": "conv4", "backbone_options": {}, **other}
    with pytest.raises(UsageError, match=complaint):
        run(dataset, Place.at(str(tmp_path)), others=(item,))
    assert not list(tmp_path.iterdir())


def test_domains_with_too_few_classes_for_the_training_way_are_refused_before_training(
    dataset: EpisodeDataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no domain can be trained on: blue is not trained on: way 5"):
        run(dataset, Place.at(str(tmp_path)), request=REQUEST.model_copy(update={"train_way": 5}))


def test_no_model_has_seen_a_test_class_or_another_domain(
    dataset: EpisodeDataset, storage: Place, matrix: Matrix
) -> None:
    made = bundles(storage)
    for row in matrix.train_domains:
        part = only_domain(dataset, row)
        known = read_training_images(made[part.digest])
        assert np.array_equal(known, np.unique(fingerprints(split_hashes(part, "train"))))
        assert len(known) == 4 * CLASSES[row]["train"]


def test_what_is_finished_is_not_done_again(dataset: EpisodeDataset, storage: Place, matrix: Matrix) -> None:
    def made() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in storage.folder.glob("results/*/*/contents.json")}

    before = made()
    assert len(before) == 3 + 9
    lost = next(path for path in before if path.parent.parent.name == "domain-cell")
    shutil.rmtree(lost.parent)  # as if the run had been killed before it
    assert run(dataset, storage) == matrix
    after = made()
    assert after.keys() == before.keys()
    assert [path for path in after if after[path] != before[path]] == [lost]


def test_some_domains_are_a_part_of_the_whole(dataset: EpisodeDataset, storage: Place, matrix: Matrix) -> None:
    part = run(dataset, storage, "red", "blue")
    assert part.train_domains == part.test_domains == ("red", "blue")
    assert part.learners[0].cell("red", "blue") == matrix.learners[0].cell("red", "blue")


def test_a_domain_that_is_none_is_named_with_the_nearest(dataset: EpisodeDataset, storage: Place) -> None:
    with pytest.raises(UsageError, match="did you mean 'blue'"):
        run(dataset, storage, "blu")


def test_domains_of_which_none_can_be_tested_on_are_refused(dataset: EpisodeDataset, storage: Place) -> None:
    with pytest.raises(UsageError, match="no domain can be tested on: tiny"):
        run(dataset, storage, "tiny")


def test_the_page_shows_every_figure_and_reason(matrix: Matrix, tmp_path: Path) -> None:
    write_matrix_page(tmp_path / "matrix.html", matrix)
    page = (tmp_path / "matrix.html").read_text()
    for cell in matrix.learners[0].cells:
        assert f"{100 * cell.accuracy:.1f} <span" in page
    assert "poor is not trained on" in page
    assert page.count('class="same"') == 2
    assert "://" not in page
