"""What is said of a training that cannot go on: where it ended, what was found there, and which options to try."""

from collections.abc import Sequence

from metalearn_core.errors import MetalearnError
from metalearn_core.evaluation.scoring import NoNumbersError
from metalearn_core.learners import LearnerSpec
from metalearn_core.training.checkpoint import Progress
from metalearn_core.training.report import Phase


def diverged(spec: LearnerSpec, progress: Progress, step: int, found: str) -> MetalearnError:
    """Return the error of a step that led to what is no number.

    Args:
        spec: resolved, with every option written out.
        progress: before the step, or after it.
        step: its number, from 1.
        found: what is no number, and what it came of.
    """
    name = spec.learner
    inner = f", {name}.inner_lr" if "inner_lr" in spec.options else ""
    return MetalearnError(
        f"{name}: training diverged at step {step} (episode {progress.episodes}): {found}: "
        f"try a smaller {name}.{_rate(progress.phase)}{inner}, {name}.gradient_clip=10, or --precision fp32"
    )


def unanswered(spec: LearnerSpec, progress: Progress, error: NoNumbersError) -> MetalearnError:
    """Return the error of a validation whose answers are no numbers though every training loss was one."""
    name = spec.learner
    options = ("eval_steps", "inner_lr", _rate(progress.phase))
    return MetalearnError(
        f"{name}: its answers in validation episode {error.episode}, after training step {progress.step} (episode "
        f"{progress.episodes}), are no numbers: "
        f"try a smaller {_any_of([f'{name}.{option}' for option in options if option in spec.options])}"
    )


def _rate(phase: Phase) -> str:
    return "learning_rate" if phase == "train" else "pretrain_learning_rate"


def _any_of(options: Sequence[str]) -> str:
    *others, last = options
    return f"{', '.join(others)} or {last}" if others else last
