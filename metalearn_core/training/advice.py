"""What is said of a training that cannot go on: where it ended, what was found there, and which options to try."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.errors import MetalearnError
from metalearn_core.evaluation.scoring import NoNumbersError
from metalearn_core.learners import LearnerSpec, learner_class, resolve_spec
from metalearn_core.training.checkpoint import Progress
from metalearn_core.training.report import Phase

_BACKBONE_SIZES = ("width", "widths", "hidden")
_CPU_MEMORY = "DefaultCPUAllocator"  # in the text of torch's error, which has no class of its own


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


def too_large(spec: LearnerSpec, phase: Phase, shape: EpisodeShape | None, *, chunked: bool) -> MetalearnError:
    """Return the error of a step that a GPU's memory does not hold.

    Args:
        spec: resolved.
        phase: that the step is of.
        shape: of training episodes; None: the learner trains on plain examples, as each does in pretraining.
        chunked: a chunk of several episodes is what does not fit, and a smaller one may.
    """
    name = spec.learner
    if phase == "pretrain" or shape is None:
        what, options = "training examples", [f"{name}.{'pretrain_' if phase == 'pretrain' else ''}batch_size"]
    else:
        way = "--way" if learner_class(name).info.fixed_way else "--train-way"
        what, options = "training episodes", [*["--chunk"] * chunked, *[way] * (shape.way > 1), "--train-query"]
    options += _backbone_sizes(spec)
    return MetalearnError(f"{name}: the GPU's memory does not hold its {what}: take a smaller {_any_of(options)}")


@contextmanager
def memory_explained(spec: LearnerSpec, processes: int) -> Iterator[None]:
    """Say what to make smaller where the machine's own memory does not hold what is done inside the block.

    Args:
        spec: of the learner that is trained.
        processes: that train together.

    Raises:
        MetalearnError: it does not.
    """
    try:
        yield
    except RuntimeError as error:
        if _CPU_MEMORY not in str(error):
            raise
        found = resolve_spec(spec)
        batches = [f"{spec.learner}.{name}" for name in ("batch_size", "pretrain_batch_size") if name in found.options]
        episodes = [] if "batch_size" in found.options else ["--train-way", "--train-query"]
        smaller = ", ".join([*episodes, *batches, *_backbone_sizes(found), *["--processes"] * (processes > 1)])
        raise MetalearnError(
            f"{spec.learner}: the memory of this machine does not hold its training: lower one of {smaller}"
        ) from None


def _backbone_sizes(spec: LearnerSpec) -> list[str]:
    return [f"backbone.{option}" for option in _BACKBONE_SIZES if option in spec.backbone_options]


def _rate(phase: Phase) -> str:
    return "learning_rate" if phase == "train" else "pretrain_learning_rate"


def _any_of(options: Sequence[str]) -> str:
    *others, last = options
    return f"{', '.join(others)} or {last}" if others else last
