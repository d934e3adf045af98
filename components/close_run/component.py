"""The last step: all that people look at is put on the MLflow run."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def close_run(
    dataset: Input[Dataset],
    verdict: Input[Artifact],
    evaluated: Input[list[Artifact]],
    decision: Input[Artifact],
    command: str,
    report: Output[HTML],
    summary: Output[Artifact],
) -> None:
    """Complete the MLflow run: children for results that were kept, the dataset, the report, the outcome.

    Args:
        dataset: the pointer that `build_episodes` wrote.
        verdict: on the dataset.
        evaluated: one evaluation a learner.
        decision: the gate's.
        command: the command that reproduces the run.
        report: the run's report, one self-contained page.
        summary: what the run came to, as JSON.
    """
    from pathlib import Path

    from metalearn_core.events import emit
    from metalearn_core.steps import run
    from metalearn_core.steps.data import read_pointer
    from metalearn_core.steps.frame import step
    from metalearn_core.storage import write_json

    with step("close_run"):
        result = run.close_run(
            *read_pointer(dataset.path),
            quality=Path(verdict.path),
            evaluations=[Path(artifact.path) for artifact in evaluated],
            decision=Path(decision.path),
            command=command,
            report=Path(report.path),
        )
        write_json(Path(summary.path), result)
        emit("result", "close_run", summary=summary.path)
