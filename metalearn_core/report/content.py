"""What the report of a run says, as data; the pictures come from the dataset."""

from typing import Any

from pydantic import Field

from metalearn_core.data.manifest import Manifest, Record
from metalearn_core.evaluation.evaluate import Evaluation
from metalearn_core.evaluation.ranking import Ranking
from metalearn_core.explanation.learner import LearnerExplanation


class LearnerReport(Record):
    """One learner of the run.

    Attributes:
        name: as people should see it.
        evaluation: on test episodes.
        validation_accuracy: on validation episodes, by which learners are selected.
        options: that differ from the defaults.
        history: a record a validation: episodes, seconds, `validation/accuracy`, `train/loss` …
        train_seconds, train_episodes: what its training cost.
        parameters: numbers that were learned.
        peak_memory_bytes: the largest memory of the process that trained.
        selected: it is the one that was registered.
        explanation: of its answers on test episodes.
    """

    name: str
    evaluation: Evaluation
    validation_accuracy: float | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    train_seconds: float | None = None
    train_episodes: int | None = None
    parameters: int | None = None
    peak_memory_bytes: int | None = None
    selected: bool = False
    explanation: LearnerExplanation | None = None


class CheckReport(Record):
    """One check of the data; one that is not blocking only warns."""

    name: str
    passed: bool
    observed: str
    expected: str
    blocking: bool


class DecisionReport(Record):
    """What the gate decided on the registered version, and why.

    Attributes:
        model: its address.
        promoted: it is the champion.
        reasons: sentences with figures.
        champion_before: the version that was the champion; None where there was none.
        look: the number of this comparison on these test classes, counted from 1; None if nothing was compared.
    """

    model: str
    promoted: bool
    reasons: tuple[str, ...]
    champion_before: str | None = None
    look: int | None = None


class ReportContent(Record):
    """Everything that the report shows but pictures.

    Attributes:
        title: of the page.
        asked: what the person asked for, in their words: source, shape, learners, budget.
        manifest: of the dataset.
        learners: in the order in which they were asked for; with several training seeds the best model of each.
        ranking: each learner against the selected one; None: there is nothing to compare.
        checks: of the data.
        decision: None where nothing was registered.
        lineage: names and values: run, commit, dataset digest, versions.
        command: that does the same again.
    """

    title: str
    asked: dict[str, str]
    manifest: Manifest
    learners: tuple[LearnerReport, ...] = Field(min_length=1)
    ranking: Ranking | None = None
    checks: tuple[CheckReport, ...] = ()
    decision: DecisionReport | None = None
    lineage: dict[str, str] = Field(default_factory=dict)
    command: str = ""

    @property
    def selected(self) -> LearnerReport:
        """The learner that was registered; of a run without, the first."""
        return next((one for one in self.learners if one.selected), self.learners[0])
