"""A trained model in people's hands: a few labelled examples in, labels and probabilities of others out."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from metalearn_core.bundle import (
    ADAPTED_NAME,
    ADAPTED_TENSORS_NAME,
    SUMS_NAME,
    BundleDescription,
    load_bundle,
    verify_bundle,
    write_bundle,
)
from metalearn_core.bundle_fetch import resolve_model
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.examples import to_examples
from metalearn_core.explanation.adaptation import Adaptation, explain_adaptation
from metalearn_core.explanation.neighbours import Neighbours, compared, nearest_support
from metalearn_core.learners.contract import Learner, State
from metalearn_core.learners.embedding import EmbeddingLearner
from metalearn_core.storage import json_bytes, read_json

QUERIES_AT_ONCE, ANSWERS_AT_ONCE = 256, 2**14
"""What the learner is asked at once: so many queries, and of many classes so few that these are the pairs of both."""
NEIGHBOURS = 3
_SUPPORT_X, _SUPPORT_Y, _STATE = "support_x", "support_y", "state."  # in a bundle that has a support set

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of q queries.

    Attributes:
        labels: the most probable label of each, as it was given for the support set.
        probabilities: (q, way) float64; a row sums to 1.
        classes: the labels of the columns, in the order in which they first appear in the support set.
    """

    labels: list[Hashable]
    probabilities: npt.NDArray[np.float64]
    classes: list[Hashable]


@dataclass(frozen=True)
class Explanation:
    """What the classifier may have gone by for q queries. Distances are in the learner's own feature space.

    Attributes:
        prediction: what it says.
        nearest: (q, k) int64, positions in the support set of the examples that a query lies nearest to.
        distances: (q, k) float64, to those.
        prototype_distances: (q, way) float64, to each class's prototype; None where the learner keeps none.
        adaptation: how far the support set moved the weights, and its loss over the inner steps.
        decides_by_distance: the distances are what the learner decides by; else they show what is alike to it.
    """

    prediction: Prediction
    nearest: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float64]
    prototype_distances: npt.NDArray[np.float64] | None
    adaptation: Adaptation
    decides_by_distance: bool


class Classifier:
    """A learner that has seen a support set; made by `Model.adapt`, and kept on disk by `save` and `load_classifier`.

    Args:
        model: whose learner it is.
        support_x: (s, *x), the support set.
        support_y: (s,) columns of `classes`.
        classes: the labels of the columns.
        state: what the learner made of the support set.
        features: (s, d) of the support set, where they are known: see `Model.embedded`.
    """

    def __init__(
        self,
        model: "Model",
        support_x: torch.Tensor,
        support_y: torch.Tensor,
        classes: list[Hashable],
        state: State,
        features: torch.Tensor | None = None,
    ) -> None:
        self.model, self.support_x, self.support_y, self.state = model, support_x, support_y, state
        self.classes, self._features = classes, features

    @property
    def nbytes(self) -> int:
        """How many bytes its tensors take."""
        own = (*self.state.values(), self.support_x, self.support_y, self._compared_support, self._features)
        return sum(value.nbytes for value in own if value is not None)

    @cached_property
    def _compared_support(self) -> torch.Tensor:
        return self._compared(self.support_x, self._features)

    def predict(self, query_x: Any) -> Prediction:
        """Classify queries.

        Args:
            query_x: q examples, in any form that `Model.adapt` takes.

        Raises:
            UsageError: what `examples.to_examples` raises, or numbers so large that the answer is none.
        """
        x = self.model.tensor(query_x, "query_x")
        return self._predict(x, self.model.embedded(x))

    def nearest(self, query_x: Any, neighbours: int = NEIGHBOURS) -> Neighbours:
        """Return the support examples that queries lie nearest to, in the learner's own feature space.

        Args:
            query_x: q examples, in any form that `Model.adapt` takes.
            neighbours: how many to name; at most as many as there are.

        Raises:
            UsageError: a number of neighbours below one, or what `examples.to_examples` raises.
        """
        x = self.model.tensor(query_x, "query_x")
        return self._nearest(x, self.model.embedded(x), neighbours)

    def answer(self, query_x: Any, neighbours: int = NEIGHBOURS) -> tuple[Prediction, Neighbours]:
        """Classify queries, and name the support examples that they lie nearest to: `predict` and `nearest` at once."""
        x = self.model.tensor(query_x, "query_x")
        features = self.model.embedded(x)
        return self._predict(x, features), self._nearest(x, features, neighbours)

    def save(self, path: str | Path) -> None:
        """Write a bundle of the model that has this support set in it; see `load_classifier`.

        Raises:
            UsageError: there is something else at `path`, a label is neither text nor a number, or the model was not
                loaded from a bundle.
            MetalearnError: the model's bundle is not (any more) what was loaded.
        """
        from safetensors.torch import save

        model = self.model
        if strange := [label for label in self.classes if not _is_json(label)]:
            raise UsageError(f"label {strange[0]!r} cannot be saved: expected text, a number, true, false or none")
        if verify_bundle(model.bundle) != model.digest:
            raise MetalearnError(f"bundle {model.bundle}: it is not the one that was loaded any more: load it again")
        tensors = {_SUPPORT_X: self.support_x, _SUPPORT_Y: self.support_y}
        tensors |= {_STATE + name: value for name, value in self.state.items()}
        files = {entry.name: entry.read_bytes() for entry in model.bundle.iterdir() if entry.name != SUMS_NAME}
        files[ADAPTED_NAME] = json_bytes({"classes": self.classes})
        files[ADAPTED_TENSORS_NAME] = save({name: value.cpu().contiguous() for name, value in tensors.items()})
        write_bundle(Path(path), files)

    def explain(self, query_x: Any, neighbours: int = NEIGHBOURS) -> Explanation:
        """Classify queries and say what the answers may go by.

        Args:
            query_x: q examples, in any form that `Model.adapt` takes.
            neighbours: how many of the nearest support examples to name; at most as many as there are.

        Raises:
            UsageError: a number of neighbours below one, or what `examples.to_examples` raises.
        """
        prediction, near = self.answer(query_x, neighbours)
        support_x, support_y = self.support_x.unsqueeze(0), self.support_y.unsqueeze(0)
        return Explanation(
            prediction=prediction,
            nearest=near.nearest,
            distances=near.distances,
            prototype_distances=near.prototype_distances,
            adaptation=explain_adaptation(self.model.learner, self.state, support_x, support_y, way=len(self.classes)),
            decides_by_distance=self.model.learner.decides_by_distance,
        )

    def _nearest(self, x: torch.Tensor, features: torch.Tensor | None, neighbours: int) -> Neighbours:
        if neighbours < 1:
            raise UsageError(f"neighbours must be at least 1, got {neighbours}")
        return nearest_support(self.state, self._compared_support, self._compared(x, features), neighbours)

    def _compared(self, x: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Return where the learner compares examples x (n, *x), of known features (n, d), as (n, d) in fp64."""
        learner = self.model.learner
        if features is not None and isinstance(learner, EmbeddingLearner):
            return learner.comparable(features.unsqueeze(0))[0].double()
        return compared(learner, self.state, x)

    @torch.no_grad()
    def _predict(self, x: torch.Tensor, features: torch.Tensor | None) -> Prediction:
        answers = self.model.answers(self.state, x, features, len(self.classes))
        probabilities = answers.softmax(dim=-1).cpu().numpy()
        if len(strange := np.flatnonzero(~np.isfinite(probabilities).all(axis=1))):
            raise UsageError(
                f"query_x[{strange[0]}]: the model's answer is no number: values in it, or in the support set, are too "
                "large to compute with"
            )
        return Prediction(
            [self.classes[column] for column in probabilities.argmax(axis=1)], probabilities, self.classes
        )


class Model:
    """A trained learner with its description; made by `load_model`. Queries never influence one another's answers.

    Args:
        learner: trained.
        description: of its bundle.
        bundle: the bundle's folder.
        digest: of the bundle.
    """

    def __init__(self, learner: Learner, description: BundleDescription, bundle: Path, digest: str) -> None:
        self.learner, self.description, self.bundle, self.digest = learner.eval(), description, bundle, digest
        self.learner.batch_norm = "inductive"

    @property
    def has_support(self) -> bool:
        """Whether its bundle has a support set in it, which `load_classifier` uses."""
        return (self.bundle / ADAPTED_TENSORS_NAME).exists()

    @torch.no_grad()
    def adapt(self, support_x: Any, support_y: Sequence[Hashable]) -> Classifier:
        """Use a support set; the classifier can then be asked as often as needed.

        Args:
            support_x: s examples: an array of images (s, c, h, w), (s, h, w) or (s, h, w, c), uint8 or floats in
                0 … 1; or a sequence of arrays, PIL images or file paths; for vectors an array (s, d).
            support_y: s labels, anything hashable; classes may have different numbers of examples.

        Raises:
            UsageError: another number of labels than examples, fewer than two classes, another number of classes than
                a learner of fixed way was trained for, or what `examples.to_examples` raises.
        """
        x = self.tensor(support_x, "support_x")
        labels = [label.item() if isinstance(label, np.generic) else label for label in _listed(support_y)]
        if len(labels) != len(x):
            raise UsageError(f"support_y: expected a label for each of the {len(x)} examples, got {len(labels)}")
        try:
            classes = list(dict.fromkeys(labels))
        except TypeError:
            raise UsageError("support_y: expected labels that can be hashed, such as text or numbers") from None
        self._check_way(len(classes))
        number = {label: column for column, label in enumerate(classes)}
        y = torch.tensor([number[label] for label in labels], device=x.device)
        features = self.embedded(x)
        if features is not None and isinstance(self.learner, EmbeddingLearner):
            state = self.learner.adapt_features(features.unsqueeze(0), y.unsqueeze(0), way=len(classes))
        else:
            state = self.learner.adapt(x.unsqueeze(0), y.unsqueeze(0), way=len(classes))
        return Classifier(self, x, y, classes, state, features)

    def predict(self, support_x: Any, support_y: Sequence[Hashable], query_x: Any) -> Prediction:
        """Use a support set and classify queries: `adapt`, then `Classifier.predict`; same arguments and errors."""
        self.tensor(query_x, "query_x")  # before the work of adapting
        return self.adapt(support_x, support_y).predict(query_x)

    def tensor(self, values: Any, name: str) -> torch.Tensor:
        """Return examples as the learner takes them, on its device."""
        examples = torch.from_numpy(to_examples(values, self.description.input, name))
        if examples.is_floating_point():
            examples = examples.to(self.learner.mean.dtype)
        return examples.to(self.learner.mean.device)

    @torch.no_grad()
    def embedded(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return features (n, d) of x (n, *x) that no support set changes; None where the learner has none.

        Answers and nearest examples are both made of them: the backbone sees each example once.
        """
        return self.learner.embedded(x.unsqueeze(0))[0] if isinstance(self.learner, EmbeddingLearner) else None

    def answers(
        self, state: State, x: torch.Tensor, features: torch.Tensor | None = None, way: int = 1
    ) -> torch.Tensor:
        """Return the learner's answers to queries x (q, *x) in fp64: logits (q, way), or in regression (q, d).

        Args:
            state: of one episode (b = 1).
            x: the queries.
            features: (q, d), where they are known: see `embedded`.
            way: classes of the episode.
        """
        learner, at_once = self.learner, max(1, min(QUERIES_AT_ONCE, ANSWERS_AT_ONCE // way))
        if features is not None and isinstance(learner, EmbeddingLearner):
            parts = [learner.predict_features(state, part.unsqueeze(0)) for part in torch.split(features, at_once)]
        else:
            parts = [learner.predict(state, part.unsqueeze(0)) for part in torch.split(x, at_once)]
        return torch.cat(parts, dim=1)[0].double()

    def _check_way(self, way: int) -> None:
        fixed = self.description.way
        if fixed is not None and way != fixed:
            raise UsageError(
                f"support_y: {self.description.learner} was trained for exactly {fixed} classes, got {way}: "
                "train it for that way, or use a learner of any way, such as protonet"
            )
        if way < 2:
            raise UsageError(f"support_y: expected at least 2 classes, got {way}")


class Regressor:
    """A learner that has seen the points of a regression; made by `RegressionModel.adapt`."""

    def __init__(self, model: "RegressionModel", state: State, flat: bool) -> None:
        self._model, self._state, self._flat = model, state, flat

    @torch.no_grad()
    def predict(self, query_x: Any) -> Numbers:
        """Return the predictions (q, d) for q queries; (q,) where the targets were given as (s,).

        Args:
            query_x: q examples, in any form that `Model.adapt` takes.

        Raises:
            UsageError: what `examples.to_examples` raises.
        """
        values: Numbers = self._model.answers(self._state, self._model.tensor(query_x, "query_x")).cpu().numpy()
        return values[:, 0] if self._flat else values


class RegressionModel(Model):
    """A trained learner of regressions: it answers with numbers where a `Model` answers with labels."""

    @torch.no_grad()
    def adapt(self, support_x: Any, support_y: Any) -> Regressor:  # type: ignore[override]
        """Use the points of a regression; the regressor can then be asked as often as needed.

        Args:
            support_x: s examples, in any form that `Model.adapt` takes.
            support_y: their targets, numbers (s, d); or (s,) where d is 1.

        Raises:
            UsageError: targets of another shape, or not finite; or what `examples.to_examples` raises.
        """
        x = self.tensor(support_x, "support_x")
        targets, flat = self._targets(support_y, len(x))
        y = torch.from_numpy(targets).to(x.device, self.learner.mean.dtype)
        return Regressor(self, self.learner.adapt(x.unsqueeze(0), y.unsqueeze(0), way=1), flat)

    def predict(self, support_x: Any, support_y: Any, query_x: Any) -> Numbers:  # type: ignore[override]
        """Use the points of a regression and predict queries: `adapt`, then `Regressor.predict`."""
        self.tensor(query_x, "query_x")  # before the work of adapting
        return self.adapt(support_x, support_y).predict(query_x)

    def _targets(self, values: Any, examples: int) -> tuple[Numbers, bool]:
        """Return targets (s, d), and whether they were given as (s,)."""
        size = self.description.input.target_size
        try:
            targets = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise UsageError("support_y: expected numbers, the targets of a regression") from None
        flat = targets.ndim == 1 and size == 1
        targets = targets.reshape(-1, 1) if flat else targets
        if targets.shape != (examples, size):
            raise UsageError(f"support_y: expected targets ({examples}, {size}), got {targets.shape}")
        if not np.isfinite(targets).all():
            raise UsageError("support_y: expected finite numbers, got NaN or infinity")
        return targets, flat


def load_model(address: str | Path) -> Model:
    """Load a model: a bundle's folder, `NAME@ALIAS`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    A learner of regressions is a `RegressionModel`.

    Raises:
        MetalearnError: it does not exist, is damaged, or was written by a newer version.
    """
    bundle = resolve_model(address)
    digest = verify_bundle(bundle)
    learner, description = load_bundle(bundle)
    kind = Model if description.input.target_size is None else RegressionModel
    return kind(learner, description, bundle, digest)


def load_classifier(address: str | Path | Model) -> Classifier:
    """Load a classifier that `Classifier.save` wrote: its support set is in it, and queries are all that it needs.

    Args:
        address: as for `load_model`; or what that returned.

    Raises:
        UsageError: the bundle has no support set in it.
        MetalearnError: what `load_model` raises.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    model = address if isinstance(address, Model) else load_model(address)
    if not model.has_support:
        raise UsageError(f"bundle {model.bundle}: has no support set in it: `metalearn adapt` makes one that has")
    try:
        tensors = load((model.bundle / ADAPTED_TENSORS_NAME).read_bytes())
        support_x, support_y = (tensors.pop(name) for name in (_SUPPORT_X, _SUPPORT_Y))
        classes = list(read_json(model.bundle / ADAPTED_NAME, "bundle")["classes"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise MetalearnError(f"bundle {model.bundle}: {ADAPTED_TENSORS_NAME} holds no classifier: {error}") from None
    state = {name.removeprefix(_STATE): value for name, value in tensors.items()}
    return Classifier(model, support_x, support_y, classes, state)


def _is_json(label: Hashable) -> bool:
    """Return whether JSON has such a value; it has no infinity, and nothing that is no number."""
    return label is None or isinstance(label, (str, int)) or (isinstance(label, float) and math.isfinite(label))


def _listed(labels: Any) -> list[Any]:
    if isinstance(labels, str):
        raise UsageError("support_y: expected a sequence of labels, got a single str")
    return list(labels.tolist() if hasattr(labels, "tolist") else labels)
