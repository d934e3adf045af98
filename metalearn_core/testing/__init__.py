"""The conformance kit: a learner of one's own goes through the same tests as those of this package.

    import pytest
    from metalearn_core.testing import conformance_checks

    @pytest.mark.parametrize("check", conformance_checks(MyLearner), ids=str)
    def test_my_learner(check):
        check()

No test runner is needed: a check is a function without arguments that raises an `AssertionError` with what was promised
and what was found, or `unittest.SkipTest`, which pytest understands, with what it lacks on this machine.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from metalearn_core.learners.contract import Learner
from metalearn_core.testing import declarations, keeping, learning, predictions
from metalearn_core.testing.promises import Check, Promise
from metalearn_core.testing.subject import Subject

__all__ = ["Check", "conformance_checks"]


def conformance_checks(
    learner: type[Learner],
    *,
    options: Mapping[str, Any] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    overfit_steps: int | None = None,
    learns_from: Literal["queries", "support"] = "queries",
) -> list[Check]:
    """Return the checks of everything that a learner promises by its contract and by what its `info` declares.

    Nearly all run in float64, on random episodes of 4 classes, 2 examples and 3 queries per class (or as many real
    targets), some of other ways and shots: of pictures of 16×16 pixels on a conv4 of width 8; of vectors with six
    features on an mlp, and on no network at all (`identity`), unless the learner refuses that by a UsageError. For the
    time of a check, a learner that is not registered is.

    Args:
        learner: the class.
        options: of the learner, where its defaults do not fit such episodes.
        backbone_options: likewise of conv4.
        overfit_steps: outer steps in which it learns one episode by heart; None: as many as its family may take.
        learns_from: what it learns by heart then; a learner whose outer loss has no queries (Reptile) says `support`.
    """
    kinds: tuple[Literal["image", "vector"], ...] = ("image", "vector")
    modalities = [name for name in kinds if name in learner.info.modalities]
    found: list[Check] = []
    for target in learner.info.targets:
        for modality in modalities:
            first = modality == modalities[0]
            own, backbone = dict(options or {}), dict(backbone_options or {})
            subject = Subject(learner, modality, target, own, backbone, overfit_steps, learns_from)
            promises: list[Promise] = [*predictions.PROMISES]
            promises += [*learning.PROMISES, *keeping.PROMISES] if first else []
            promises += declarations.PROMISES if first and target == learner.info.targets[0] else []
            found += [Check(promise, subject) for promise in promises if promise.applies(subject)]
            on_identity = replace(subject, backbone="identity")
            if modality == "vector" and not on_identity.is_refused:
                found += [Check(promise, on_identity) for promise in predictions.PROMISES if promise.applies(subject)]
    return found
