"""The kit can fail: each way of breaking a promise is caught, by the checks of that promise and by no others."""

from contextlib import suppress
from dataclasses import replace
from unittest import SkipTest

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metalearn_core.errors import UsageError
from metalearn_core.learners import LEARNERS
from metalearn_core.learners.contract import Learner, LearnerConfig, LearnerInfo, zero_padding
from metalearn_core.learners.embedding import EmbeddingLearner, membership
from metalearn_core.learners.metric.protonet import ProtoNet
from metalearn_core.learners.optimization.maml import MAML
from metalearn_core.learners.transfer.centroid import Centroid
from metalearn_core.testing import Check, conformance_checks


def broken(kind: type[Learner]) -> set[str]:
    """Return the names of the promises that a learner breaks, of whatever examples and targets."""
    names = set()
    for check in conformance_checks(kind):
        try:
            check()
        except SkipTest:
            pass
        except AssertionError as error:
            assert check.promise.text in str(error)
            names.add(check.promise.name)
    return names


def named(name: str, **changes: object) -> LearnerInfo:
    return replace(ProtoNet.info, **{"name": name, "transductive": False, "label_equivariant": None, **changes})


class Honest(ProtoNet):
    info = named("honest")


class LooksAtOtherQueries(Honest):
    def predict_features(self, state, query):
        return super().predict_features(state, query - query.mean(dim=1, keepdim=True))


class DependsOnTheOrder(Honest):
    def adapt_features(self, support, support_y, **shape):
        position = torch.linspace(0.5, 1.5, 50, dtype=support.dtype)[: support.shape[1], None]
        return super().adapt_features(support * position, support_y, **shape)


class ForgetsTheMask(Honest):
    def adapt_features(self, support, support_y, *, way, support_mask=None):
        return super().adapt_features(support, support_y, way=way)


class MultipliesPaddingByZero(Honest):
    def adapt(self, support_x, support_y, *, way, support_mask=None):
        features = super()._embed_episodes(support_x, None)
        return self.adapt_features(features, support_y, way=way, support_mask=support_mask)


class HasADeadParameter(Honest):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.unused = nn.Parameter(torch.randn(3))


class LosesTheGradient(Honest):
    def adapt_features(self, support, support_y, **shape):
        return super().adapt_features(support.detach(), support_y, **shape)

    def predict_features(self, state, query):
        return super().predict_features(state, query.detach().requires_grad_(self.training))


class LeaksBetweenEpisodes(Honest):
    def adapt_features(self, support, support_y, **shape):
        return super().adapt_features(support - support.mean(dim=(0, 1)), support_y, **shape)


class DrawsRandomNumbers(Honest):
    def predict_features(self, state, query):
        return super().predict_features(state, query + 0.01 * torch.randn_like(query[:, :1]))


class HasAGeneratorOfItsOwn(Honest):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.generator = torch.Generator().manual_seed(0)

    def predict_features(self, state, query):
        noise = torch.randn(query[:1, :1].shape, generator=self.generator, dtype=query.dtype)
        return super().predict_features(state, query + 0.01 * noise)


class LearnsInPlace(Honest):
    def adapt_features(self, support, support_y, **shape):
        next(self.parameters()).data.mul_(1.0001)
        return super().adapt_features(support, support_y, **shape)


class KeepsSomethingOutsideItsState(Honest):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.scales = torch.rand(self.backbone.feature_size).double()

    def predict_features(self, state, query):
        return super().predict_features(state, query + self.scales.to(query.dtype))


class ClimbsItsLoss(Honest):
    def train_episodes(self, episodes):
        outcome = super().train_episodes(episodes)
        return replace(outcome, losses=-outcome.losses)


class GuessesAbsentClasses(Honest):
    def predict_features(self, state, query):
        return super().predict_features(state, query).nan_to_num(neginf=-1e4)


class ComputesInSinglePrecision(Honest):
    def predict_features(self, state, query):
        return super().predict_features(state, query).float()


class ComputesInBf16WhereItMay(Honest):
    def predict_features(self, state, query):
        logits = super().predict_features(state, query)
        return logits.bfloat16() if torch.is_autocast_enabled("cpu") else logits


class TakesTwoShotsAlone(Honest):
    def adapt_features(self, support, support_y, *, way, support_mask=None):
        assert support_mask is not None or support.shape[1] <= 2 * way
        return super().adapt_features(support, support_y, way=way, support_mask=support_mask)


class PrefersTheLastColumn(Honest):
    def predict_features(self, state, query):
        logits = super().predict_features(state, query)
        return logits + torch.arange(logits.shape[-1])


class TakesAnyWayThoughItsWayIsFixed(Honest):
    info = named("honest", fixed_way=True)


class TakesBytesAsTheyAre(Honest):
    def standardise(self, x):
        return super().standardise(x.to(self.mean.dtype))


class HidesAnOption(Honest):
    class Config(ProtoNet.Config):
        hidden: int = 3


class CountsItsTrainingSteps(Honest):
    calls = 0

    def train_episodes(self, episodes):
        self.calls += 1
        outcome = super().train_episodes(episodes)
        return replace(outcome, losses=outcome.losses * (1 + 0.1 * self.calls))


class ScoresPaddingToo(Honest):
    def train_episodes(self, episodes):
        right = self(episodes).detach().argmax(dim=-1) == episodes.query_y
        return replace(super().train_episodes(episodes), accuracies=right.double().mean(dim=1))


class AveragesPaddingToo(Honest):
    def train_episodes(self, episodes):
        _, statistics = self.embed_by_episode(torch.cat([episodes.support_x, episodes.query_x], dim=1))
        own = {name: value.detach() for name, value in statistics.items()}
        return replace(super().train_episodes(episodes), statistics=own)


class ComparesInContext(Honest):
    def comparable(self, features):
        return features - features.mean(dim=1, keepdim=True)


class KeepsItsPrototypesElsewhere(Honest):
    def adapt_features(self, support, support_y, **shape):
        state = super().adapt_features(support, support_y, **shape)
        return {**state, "means": state["prototypes"], "prototypes": 2 * state["prototypes"]}

    def predict_features(self, state, query):
        return super().predict_features({**state, "prototypes": state["means"]}, query)


class NamesOtherStatistics(Honest):
    def train_episodes(self, episodes):
        outcome = super().train_episodes(episodes)
        return replace(outcome, statistics={f"other.{name}": value for name, value in outcome.statistics.items()})


class TakesVectorsThoughItSaysImages(Honest):
    info = named("honest", modalities=("image",))

    @classmethod
    def check_spec(cls, spec):
        super().check_spec(spec.model_copy(update={"modality": "image"}))


class EmbedsTwice(Honest):
    def embed(self, x):
        return 2 * super().embed(x) if x.shape[0] == 8 else super().embed(x)


class LeaksWhenTransductive(ProtoNet):
    info = named("honest", transductive=True)

    def predict(self, state, query_x, query_mask=None):
        logits = super().predict(state, query_x, query_mask)
        return logits - logits.mean(dim=0) if self.batch_norm == "transductive" else logits


class CentresOnWhatItNeverAverages(Centroid):
    info = replace(Centroid.info, name="honest")

    def feature_statistics(self, features):
        return {}


class Ridge(Honest):
    """Takes classes and real targets alike: ridge regression on the features."""

    info = named("ridge", targets=("class", "real"), family="optimization")
    decides_by_distance = False

    def adapt_features(self, support, support_y, *, way, support_mask=None):
        real = support_y.is_floating_point()
        mask = torch.ones(support.shape[:2], dtype=torch.bool) if support_mask is None else support_mask
        targets = support_y if real else F.one_hot(support_y, way).to(support.dtype)
        support, targets = (zero_padding(value, mask) for value in (support, targets))
        with torch.autocast(support.device.type, enabled=False):
            gram = support @ support.mT + torch.eye(support.shape[1], dtype=support.dtype)
            weight = support.mT @ torch.linalg.solve(gram, targets)
        present = targets.new_ones(len(targets), targets.shape[-1]) if real else targets.sum(dim=1)
        return {"weight": weight, "present": present > 0}

    def predict_features(self, state, query):
        with torch.autocast(query.device.type, enabled=False):
            answers = query @ state["weight"]
        return torch.where(state["present"].unsqueeze(1), answers, -torch.inf)


class SaysThatItDecidesByDistance(Ridge):
    decides_by_distance = True


class CountsItsStepsInRegression(Ridge):
    calls = 0

    def train_episodes(self, episodes):
        outcome = super().train_episodes(episodes)
        self.calls += 1 if episodes.query_y.is_floating_point() else 0
        return replace(outcome, losses=outcome.losses * (1 + 0.1 * self.calls))


class EmbedsWhatPadsTheQueries(MAML):
    """Its losses are right, and the gradients of 0 × NaN are not."""

    info = replace(MAML.info, name="honest", transductive=False)

    def predict(self, state, query_x, query_mask=None):
        return super().predict(state, query_x)


class RefusesAnotherWayInPredictionAlone(MAML):
    info = replace(MAML.info, name="honest", transductive=False)

    def check_way(self, way):
        if not self.training:
            super().check_way(way)


class Reader(EmbeddingLearner):
    """Of fixed way, and it depends on the order: an LSTM reads the support set, which queries are compared with."""

    info = LearnerInfo(
        name="reader",
        family="memory",
        paper="Hochreiter, Schmidhuber 1997, Long Short-Term Memory",
        fixed_way=True,
        order_invariant=False,
        variable_shape=False,
    )
    Config = LearnerConfig

    def __init__(self, spec, backbone, config, way=None):
        super().__init__(spec, backbone, config, way)
        self.lstm = nn.LSTM(backbone.feature_size + way, 32, batch_first=True)
        self.head = nn.Linear(backbone.feature_size, 32 * way)

    def adapt_features(self, support, support_y, *, way, support_mask=None):
        if way != self.way:
            raise UsageError(f"reader was trained for {self.way}-way episodes, got {way}-way ones")
        members = membership(support_y, way, support_mask, support.dtype)
        with torch.autocast(support.device.type, enabled=False):
            _, (hidden, _) = self.lstm(torch.cat([support, members], dim=-1))
        return {"hidden": hidden[0], "present": members.sum(dim=1) > 0}

    def predict_features(self, state, query):
        with torch.autocast(query.device.type, enabled=False):
            keys = self.head(query).unflatten(-1, (self.way, -1))
        logits = (keys * state["hidden"][:, None, None]).sum(dim=-1)
        return torch.where(state["present"].unsqueeze(1), logits, -torch.inf)


ABSENT, PADDING = "a_class_without_support_gets_minus_infinity", "padding_is_as_if_it_were_not_there"
ALONE, INDEPENDENT = "a_query_alone_gets_the_same_logits", "episodes_in_a_batch_are_independent"
CHUNKS, REACHED = "chunks_and_threads_give_the_same_gradient", "gradients_reach_every_parameter"
LOGITS, HEART = "logits_have_a_row_a_query_and_a_column_a_class", "one_episode_is_learned_by_heart"
BF16, STEP = "bf16_gives_nearly_the_same_logits", "a_small_step_lowers_the_loss"
SHOTS = "one_shot_and_five_are_taken"
PROTOTYPES, NEAREST = "prototypes_lie_where_examples_are_compared", "the_nearest_decides_where_that_is_said"
RESUMED, SAME = "a_training_that_was_cut_off_ends_with_the_same_bytes", "the_same_call_gives_the_same_bits"
STATISTICS, SHAPE = (
    "training_has_a_loss_an_episode_and_known_statistics",
    "its_training_episodes_fit_those_of_evaluation",
)

MUTANTS: dict[type[Learner], set[str]] = {
    LooksAtOtherQueries: {ALONE, PADDING, NEAREST},  # what pads the queries is looked at too
    DependsOnTheOrder: {"the_order_of_the_support_set_does_not_matter", PROTOTYPES, NEAREST},
    ForgetsTheMask: {ABSENT, PADDING},
    MultipliesPaddingByZero: {PADDING},
    HasADeadParameter: {REACHED},
    LosesTheGradient: {REACHED, HEART, STEP},
    LeaksBetweenEpisodes: {INDEPENDENT, PADDING, CHUNKS, SHOTS, PROTOTYPES, NEAREST},
    KeepsSomethingOutsideItsState: {"a_copy_with_the_same_weights_gives_the_same_logits", NEAREST},
    ClimbsItsLoss: {HEART, STEP},
    GuessesAbsentClasses: {ABSENT},
    ComputesInSinglePrecision: {LOGITS},
    ComputesInBf16WhereItMay: {BF16},
    TakesTwoShotsAlone: {SHOTS},
    PrefersTheLastColumn: {"renaming_the_classes_renames_the_columns", NEAREST},
    TakesAnyWayThoughItsWayIsFixed: {
        "another_way_is_refused",
        "its_training_episodes_fit_those_of_evaluation",
        RESUMED,
    },
    TakesBytesAsTheyAre: {"bytes_are_divided_by_255"},
    HidesAnOption: {"every_option_is_documented_and_has_a_default"},
    CountsItsTrainingSteps: {SAME, RESUMED, INDEPENDENT, PADDING, CHUNKS},
    CountsItsStepsInRegression: {SAME, RESUMED, INDEPENDENT, PADDING, CHUNKS},
    ScoresPaddingToo: {PADDING},
    EmbedsWhatPadsTheQueries: {PADDING},
    RefusesAnotherWayInPredictionAlone: {"another_way_is_refused"},
    AveragesPaddingToo: {PADDING},
    ComparesInContext: {"compared_features_are_an_examples_own", PROTOTYPES, NEAREST},
    KeepsItsPrototypesElsewhere: {PROTOTYPES},
    SaysThatItDecidesByDistance: {NEAREST},
    NamesOtherStatistics: {STATISTICS, HEART, RESUMED},
    CentresOnWhatItNeverAverages: {STATISTICS, HEART, RESUMED},
    TakesVectorsThoughItSaysImages: {"another_modality_is_refused"},
    EmbedsTwice: {"features_computed_once_give_the_same_logits", INDEPENDENT, PADDING, SHOTS},
    LeaksWhenTransductive: {"the_transductive_mode_keeps_to_its_episode", PADDING},
}
RESTLESS: dict[type[Learner], str] = {  # no two calls agree, so that most checks fail
    DrawsRandomNumbers: SAME,
    HasAGeneratorOfItsOwn: SAME,
    LearnsInPlace: "nothing_is_changed_by_a_call",
}


@pytest.mark.parametrize("kind", [Honest, Ridge, Reader])
def test_an_honest_learner_breaks_no_promise(kind: type[Learner]) -> None:
    assert broken(kind) == set()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught_by_the_checks_of_what_it_breaks_and_by_no_others(mutant: type[Learner]) -> None:
    assert broken(mutant) == MUTANTS[mutant]


@pytest.mark.parametrize("mutant", RESTLESS)
def test_a_mutant_that_is_another_one_at_each_call_is_caught(mutant: type[Learner]) -> None:
    assert RESTLESS[mutant] in broken(mutant)


def test_a_broken_promise_says_what_was_promised_and_what_was_found() -> None:
    with pytest.raises(AssertionError) as error:
        the(conformance_checks(HasADeadParameter), "image-class-gradients")()
    assert str(error.value) == (
        "honest-image-class breaks a promise\n"
        "  promised: The gradient of the outer loss reaches every parameter, at the start of training or at its end.\n"
        "  found: gradients of zero: unused"
    )


def test_a_learner_that_fails_is_told_like_one_that_breaks_a_promise() -> None:
    class Fails(Honest):
        def predict_features(self, state, query):
            raise ValueError("no such thing")

    with pytest.raises(AssertionError, match=r"promised: Adapt gives(.|\n)*found: ValueError: no such thing"):
        the(conformance_checks(Fails), "image-class-logits")()


def test_what_a_learner_declares_decides_which_checks_there_are() -> None:
    names = {kind: {check.promise.name for check in conformance_checks(kind)} for kind in (Honest, Reader, MAML)}
    assert "any_way_is_taken" in names[Honest] - names[Reader]
    assert {"another_way_is_refused"} <= names[Reader] & names[MAML]
    assert {PADDING, "the_order_of_the_support_set_does_not_matter"} <= names[MAML] - names[Reader]
    assert not {"renaming_the_classes_renames_the_columns"} & (names[Reader] | names[MAML])
    targets = {check.subject.target for check in conformance_checks(Ridge)}
    assert targets == {"class", "real"}


def test_vectors_are_looked_at_without_a_network_too_unless_that_is_refused() -> None:
    class NeedsANetwork(Honest):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if not list(self.backbone.parameters()):
                raise UsageError("take backbone=mlp")

    class BreaksWithoutOne(Honest):
        def adapt_features(self, support, support_y, **shape):
            return super().adapt_features(support.to(next(self.backbone.parameters()).dtype), support_y, **shape)

    kinds = {kind: conformance_checks(kind) for kind in (Honest, NeedsANetwork, BreaksWithoutOne)}
    names = {kind: {str(check) for check in checks} for kind, checks in kinds.items()}
    alone = names[Honest] - names[NeedsANetwork]
    assert alone
    assert all(name.startswith("honest-identity-class-") for name in alone)
    assert names[BreaksWithoutOne] == names[Honest]
    check = the(kinds[BreaksWithoutOne], "identity-class-logits")
    with pytest.raises(AssertionError, match="StopIteration"):
        check()


def test_the_registry_torch_and_the_processor_are_left_as_they_were() -> None:
    learners, threads, generator = dict(LEARNERS), torch.get_num_threads(), torch.get_rng_state()
    for check in conformance_checks(Honest):
        with suppress(SkipTest):
            check()
    assert learners == LEARNERS
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_machine_without_a_gpu_says_so() -> None:
    check = the(conformance_checks(Honest), "image-class-a_gpu")
    if torch.cuda.is_available():
        check()
    else:
        with pytest.raises(SkipTest, match="no GPU here"):
            check()


def the(checks: list[Check], name: str) -> Check:
    [check] = [check for check in checks if name in str(check)]
    return check
