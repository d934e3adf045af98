"""Regression from the first outer step to a prediction, with a learner of closed form: ridge regression on features."""

import json
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sinusoid import SinusoidSampler, SinusoidTasks
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.evaluation.regression import RegressionEvaluation
from metalearn_core.learners import LEARNERS, LearnerSpec, make_learner, register
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, State
from metalearn_core.learners.embedding import EmbeddingLearner
from metalearn_core.model import RegressionModel, load_model
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan, training_shape

TASKS = SinusoidTasks()
PENALTY = 0.1
BACKBONE = {"backbone": "mlp", "backbone_options": {"hidden": (24, 24)}}


class Ridge(EmbeddingLearner):
    """W = (ΦᵀΦ + λ)⁻¹ ΦᵀY on the support set's features and a constant."""

    info = LearnerInfo(
        name="ridge",
        family="metric",
        paper="Bertinetto, Henriques, Torr, Vedaldi 2019",
        fixed_way=False,
        targets=("real",),
    )
    Config: ClassVar[type[LearnerConfig]] = LearnerConfig

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        del way, support_mask
        features = _with_constant(support)
        gram = features.mT @ features + PENALTY * torch.eye(features.shape[-1], dtype=features.dtype)
        return {"weight": torch.linalg.solve(gram, features.mT @ support_y)}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        return _with_constant(query) @ state["weight"]


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


@pytest.fixture(autouse=True)
def ridge() -> object:
    register(Ridge)
    yield
    del LEARNERS["ridge"]


def plan(**values: object) -> TrainingPlan:
    base = {"way": 1, "shot": 10, "query": 10, "episodes": 600, "validations": 3, "validation_episodes": 50}
    return TrainingPlan.model_validate({**base, "precision": "fp32", **values})


def spec(**options: object) -> LearnerSpec:
    return LearnerSpec(learner="ridge", options={"meta_batch": 20, "learning_rate": 0.01, **options}, **BACKBONE)


def test_training_lowers_the_squared_error_and_reports_it_by_its_name() -> None:
    seen: list[set[str]] = []
    result = fit(spec(), TASKS, plan(), on_metrics=lambda metrics, _: seen.append(set(metrics)))
    errors = [record["validation/mse"] for record in result.history]
    untrained = make_learner(spec(), TASKS.spec, seed=0)
    before = evaluate(untrained, TASKS, Protocol(way=1, shot=10, query=10, episodes=200))
    after = evaluate(result.learner, TASKS, Protocol(way=1, shot=10, query=10, episodes=200))
    assert result.best_validation == min(errors)
    assert after.mse < 0.7 * before.mse
    assert {"train/mse", "validation/mse"} <= set.union(*seen)
    assert not any("accuracy" in name for names in seen for name in names)


def test_the_weights_of_the_lowest_validation_error_are_kept() -> None:
    """The learning rate is so high that the error rises again and again: the best is not the last."""
    asked = plan(episodes=400, validations=10)
    result = fit(spec(learning_rate=1.0, schedule="constant"), TASKS, asked)
    errors = [record["validation/mse"] for record in result.history]
    assert result.best_validation == min(errors) < errors[-1]
    protocol = Protocol(way=1, shot=10, query=10, episodes=50, seed=1_000_003, split="validation")
    assert evaluate(result.learner, TASKS, protocol).mse == pytest.approx(min(errors), rel=1e-5)


def test_an_evaluation_is_what_numpy_finds() -> None:
    learner = make_learner(spec(), TASKS.spec, seed=3).eval()
    protocol = Protocol(way=1, shot=7, query=9, episodes=40, seed=5)
    result = evaluate(learner, TASKS, protocol)
    assert isinstance(result, RegressionEvaluation)
    batch = SinusoidSampler(TASKS, "test", EpisodeShape(1, 7, 9), seed=5).batch(0, 40)
    errors = []
    for x, y, query_x, query_y in zip(
        batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True
    ):  # the minimum of the penalised squares, by least squares on stacked rows
        with torch.no_grad():
            features, queries = (
                np.c_[learner.embed(part).double().numpy(), np.ones(len(part))] for part in (x, query_x)
            )
        rows = np.r_[features, PENALTY**0.5 * np.eye(features.shape[1])]
        targets = np.r_[y.double().numpy(), np.zeros((features.shape[1], 1))]
        weight = np.linalg.lstsq(rows, targets, rcond=None)[0]
        errors.append(np.mean((queries @ weight - query_y.double().numpy()) ** 2))
    assert result.mse == pytest.approx(np.mean(errors), rel=2e-3)
    half_width = 2.0226909 * np.std(errors, ddof=1) / 40**0.5  # Student's t, 39 degrees of freedom
    assert result.ci95 == pytest.approx(half_width, rel=5e-3)
    assert (result.points, result.protocol, result.dataset_digest) == (7, protocol, TASKS.digest)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str]:
    from pipelines.command_line import main

    monkeypatch.setattr(sys, "argv", ["metalearn", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return end.value.code, captured.out if end.value.code in (0, None) else captured.err


def test_train_evaluate_and_predict_by_the_command_line_and_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, place = tmp_path / "model", ("--workdir", tmp_path / "work")
    small = ("--learner", "ridge", "--set", "backbone=mlp", "--episodes", 200, "--set", "ridge.meta_batch=20")
    status, output = run(monkeypatch, capsys, "train", "sinusoid", *small, "-o", bundle, *place, "--json")
    assert not status, output
    record = json.loads(output)
    assert (record["metric"], record["train_shape"]) == ("mse", "1-way 10-shot 10-query")

    more = ("--episodes", 30)
    status, output = run(monkeypatch, capsys, "evaluate", bundle, "sinusoid", *more, *place, "--json")
    found = json.loads(output)
    assert "accuracy" not in found
    assert (found["points"], found["episodes"], found["split"]) == (10, 30, "test")
    _, table = run(monkeypatch, capsys, "evaluate", bundle, "sinusoid", *more, *place)
    assert f"mean squared error {found['mse']:.4f} ± {found['ci95']:.4f} after 10 points" in " ".join(table.split())

    model = load_model(bundle)
    assert isinstance(model, RegressionModel)
    x = np.linspace(-5, 5, 30)[:, None]
    y = 3 * np.sin(x - 1)
    predicted = model.adapt(x, y).predict(x)
    assert predicted.shape == (30, 1)
    assert np.mean((predicted - y) ** 2) < np.mean(y**2)
    np.testing.assert_allclose(model.predict(x, y[:, 0], x), predicted[:, 0])
    np.testing.assert_allclose(model.adapt(x, y).predict(x[3:4]), predicted[3:4], rtol=1e-4, atol=1e-5)
    for targets, message in ((y[:5], r"expected targets \(30, 1\), got \(5, 1\)"), (["a"] * 30, "expected numbers")):
        with pytest.raises(UsageError, match=message):
            model.adapt(x, targets)

    status, error = run(monkeypatch, capsys, "evaluate", bundle, "sinusoid", "--way", 5, *place)
    assert (status, error) == (2, "error: sinusoid is regression: it has way 1 and a single number of shots, got "
                                  "5-way 10-shot 10-query\n")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "sinusoid", "--learner", "protonet", "--backbone", "mlp"), "protonet classifies"),
        (("train", "sinusoid", "--learner", "ridge", "--backbone", "mlp", "--way", "5"), "it has no classes"),
        (("train", "sinusoid", "--learner", "ridge", "--backbone", "mlp", "--train-within-domain"), "has no domains"),
        (("dataset", "build", "sinusoid"), "is a distribution of regressions"),
    ],
)
def test_what_regression_has_not_is_said(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ("-o", tmp_path / "out", "--workdir", tmp_path / "w") if arguments[0] == "train" else (tmp_path / "out",)
    status, error = run(monkeypatch, capsys, *arguments, *out)
    assert status == 2
    assert message in error


def test_a_learner_of_numbers_is_not_evaluated_on_classes() -> None:
    learner = make_learner(spec(), TASKS.spec, seed=3)
    learner.spec = TASKS.spec.model_copy(update={"target_size": 2})
    with pytest.raises(UsageError, match="has targets of 1 real numbers, ridge was trained on targets of 2"):
        evaluate(learner, TASKS, Protocol(way=1))


def test_training_episodes_have_the_points_that_are_asked_for() -> None:
    assert training_shape(spec(), plan(), TASKS) == EpisodeShape(1, 10, 10)
    assert training_shape(spec(), plan(train_shot=5, train_query=20), TASKS) == EpisodeShape(1, 5, 20)
