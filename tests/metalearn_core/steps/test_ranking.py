"""The learners of a run side by side: who is selected, what stands against each, and where people read it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.steps.promotion import best_models, select
from metalearn_core.steps.ranking import rank, ranking_metrics, write_ranking
from metalearn_core.steps.requests import of_item, training_request
from metalearn_core.steps.run import open_run
from metalearn_core.steps.training import EVALUATION
from metalearn_core.storage import write_json

EPISODES = 40


def record(learner: str, validation: float, *, seed: int = 0, mean: float = 0.7, digest: str = "d") -> dict:
    """What the evaluation of a model records, as far as it is read here."""
    accuracies = np.random.default_rng([seed, *learner.encode()]).normal(mean, 0.1, EPISODES)
    return {
        "training": {
            "learner": learner,
            "item": {"learner": learner, "options": {}, "backbone": "conv4", "backbone_options": {}},
            "request": {"seed": seed},
            "train_seconds": 10.0 + seed,
            "train_episodes": 100,
            "parameters": 7,
            "peak_memory_bytes": 1000 + seed,
            "peak_gpu_memory_bytes": 0,
        },
        "validation": {"accuracy": validation},
        "test": {
            "accuracy": float(accuracies.mean()),
            "ci95": 0.01,
            "ci95_classes": 0.02,
            "ece": 0.1 + 0.1 * seed,
            "adaptation_ms": 2.0,
            "protocol": {"episodes": EPISODES},
            "dataset_digest": digest,
        },
        "test_episodes": accuracies.tolist(),
    }


SEEDED = [
    record("steady", 0.80, seed=0), record("steady", 0.82, seed=1), record("steady", 0.81, seed=2),
    record("lucky", 0.90, seed=0), record("lucky", 0.60, seed=1), record("lucky", 0.60, seed=2),
]  # fmt: skip


def selected(records: list[dict], folder: Path) -> int:
    for number, one in enumerate(records):
        (folder / str(number)).mkdir()
        write_json(folder / str(number) / EVALUATION, one)
    return select([folder / str(number) for number in range(len(records))]).position


def test_the_learner_with_the_best_mean_is_selected_and_then_its_best_model(tmp_path: Path) -> None:
    """One lucky seed does not make a learner."""
    assert selected(SEEDED, tmp_path) == 1
    assert [(one["training"]["learner"], one["training"]["request"]["seed"]) for one in best_models(SEEDED)] == [
        ("steady", 1),
        ("lucky", 0),
    ]


def test_of_equals_the_first_is_selected_whatever_the_test_says(tmp_path: Path) -> None:
    assert selected([record("a", 0.8, mean=0.1), record("b", 0.8, mean=0.9)], tmp_path) == 0


def test_learners_are_set_against_the_selected_one_over_seeds() -> None:
    ranking = rank(SEEDED, SEEDED[1])
    steady, lucky = ranking.learners
    assert (ranking.selected, ranking.unit, steady.against_selected) == ("steady", "seeds", None)
    means = [[np.mean(one["test_episodes"]) for one in SEEDED[start : start + 3]] for start in (0, 3)]
    assert steady.accuracy == pytest.approx(np.mean(means[0]))
    assert steady.ci95 == pytest.approx(stats.sem(means[0]) * stats.t.ppf(0.975, 2))
    assert lucky.against_selected.p_value == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)
    assert [one.seed for one in lucky.seeds] == [0, 1, 2]
    assert (lucky.train_seconds, lucky.ece, lucky.peak_memory_bytes) == (11.0, pytest.approx(0.2), 1002)
    assert ranking.speaks_of.startswith("learners, by 3 training seeds")


def test_models_of_one_seed_are_set_against_each_other_by_episode() -> None:
    records = [record("a", 0.8), record("b", 0.7), record("c", 0.6)]
    ranking = rank(records, records[0])
    test = stats.ttest_rel(records[1]["test_episodes"], records[0]["test_episodes"])
    assert ranking.unit == "episodes"
    assert ranking.learners[1].against_selected.p_value == pytest.approx(test.pvalue)
    assert "one model of each learner" in ranking.speaks_of


def test_models_that_met_other_episodes_are_not_compared() -> None:
    records = [record("a", 0.8), record("b", 0.7, digest="without a class")]
    with pytest.raises(MetalearnError, match="same episodes"):
        rank(records, records[0])


def test_the_table_is_a_file_that_holds_every_figure(tmp_path: Path) -> None:
    ranking = rank(SEEDED, SEEDED[1])
    as_json, as_table = write_ranking(tmp_path, ranking)
    assert json.loads(as_json.read_text()) == ranking.model_dump(mode="json")
    rows = list(csv.DictReader(as_table.open(newline="")))
    assert [row["name"] for row in rows] == ["steady", "lucky"]
    assert [row["selected"] for row in rows] == ["True", "False"]
    assert rows[0]["against_selected_p_holm"] == ""
    assert float(rows[1]["against_selected_difference"]) == ranking.learners[1].against_selected.difference
    metrics = ranking_metrics(ranking.learners[1])
    assert metrics["against_selected/p_holm"] == ranking.learners[1].against_selected.p_holm
    assert metrics["seeds/test/accuracy"] == ranking.learners[1].accuracy


def test_an_items_seed_counts_before_the_runs() -> None:
    request = training_request(way=5, shot=1, query=15, episodes=10, seed=4)
    item = {"learner": "maml", "options": {}}
    assert of_item({**item, "seed": 7}, request) == (item, request.model_copy(update={"seed": 7}))
    assert of_item(item, request) == (item, request)
    with pytest.raises(UsageError, match="seed"):
        of_item({**item, "seed": -1}, request)


@pytest.mark.parametrize(
    ("seeds", "complaint"), [({"maml": [0, 1], "protonet": [0]}, "same number"), ({"maml": [3, 3]}, "twice")]
)
def test_learners_with_uneven_seeds_are_refused_before_any_work(seeds: dict, complaint: str, tmp_path: Path) -> None:
    items = [json.dumps({"learner": name, "seed": seed}) for name, each in seeds.items() for seed in each]
    settings = {"way": 5, "shot": 1, "query": 15, "train_way": 0, "train_shot": 0, "train_query": 0, "seed": 0}
    settings |= {"train_episodes": 10, "train_seconds": 0, "patience": 0, "precision": "auto"}
    with pytest.raises(UsageError, match=complaint):
        open_run("few-shot", items, storage=str(tmp_path), **settings)
