"""What a run with three learners found, on a dataset in memory; the learners were not trained."""

import pytest

from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.explanation.learner import explain_learner
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.report.content import CheckReport, DecisionReport, LearnerReport, ReportContent
from metalearn_core.report.pictures import Album

HOSTILE = "<script>alert('x')</script>"
HISTORY = tuple(
    {"episodes": 10.0 * i, "seconds": float(i), "validation/accuracy": 0.5 + 0.1 * i, "train/loss": 2.0 - i / 4}
    for i in range(4)
)
PROTOCOL = Protocol(query=3, episodes=24, seed=7)


@pytest.fixture(scope="session")
def dataset(noisy_dataset):
    return noisy_dataset


@pytest.fixture(scope="session")
def hostile():
    """A name that would do harm as markup."""
    return HOSTILE


@pytest.fixture(scope="session")
def content(dataset):
    learners = {}
    for name, options in (("protonet", {}), ("maml", {"eval_steps": 3})):
        spec = LearnerSpec(learner=name, options=options, backbone_options={"width": 8})
        learner = make_learner(spec, dataset.spec, way=5, seed=1)
        learners[name] = evaluate(learner, dataset, PROTOCOL), explain_learner(learner, dataset, PROTOCOL)
    evaluation, explanation = learners["protonet"]
    worse = evaluation.model_copy(update={"accuracy": 0.25, "by_domain": {"wide": None}, "confusions": ()})
    return ReportContent(
        title=f"A run {HOSTILE}",
        asked={"Source": HOSTILE, "Episodes": "5-way 1-shot"},
        manifest=dataset.manifest.model_copy(update={"source": HOSTILE}),
        learners=(
            LearnerReport(name="weak", evaluation=worse),
            LearnerReport(
                name="protonet",
                evaluation=evaluation,
                validation_accuracy=0.625,
                history=HISTORY,
                train_seconds=35.2,
                train_episodes=12345,
                parameters=111_680,
                options={"learning_rate": 0.01},
                selected=True,
                explanation=explanation,
            ),
            LearnerReport(name="maml", evaluation=learners["maml"][0], explanation=learners["maml"][1]),
        ),
        checks=(CheckReport(name="classes", passed=True, observed="18", expected="5", blocking=True),),
        decision=DecisionReport(
            model="models:/few-shot/3",
            promoted=False,
            reasons=("difference too small",),
            champion_before="2",
            look=4,
        ),
        lineage={"Commit": "abc123"},
        command="metalearn run glyphs --seed 0",
    )


@pytest.fixture(scope="session")
def album(content, dataset):
    return Album(content.manifest, dataset)
