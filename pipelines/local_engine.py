"""The pipeline on this machine, by KFP's local runner: every step a process of its own, one learner at a time.

The command line starts this module as a process of its own, so that KFP's output goes to a log file.
"""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from metalearn_core.errors import MetalearnError, one_line
from metalearn_core.events import emit
from metalearn_core.lifetime import end_with_owner


class EngineRequest(BaseModel):
    """What the engine is asked to do.

    Attributes:
        arguments: the pipeline's inputs.
        build_shards: steps that share the decoding of the source.
        root: where KFP's artifacts go.
        artifacts: where MLflow's go, when tracking is local.
        experiment: MLflow's.
        log: where everything is written that the engine and its steps print.
        environment: for the engine and its steps.
    """

    arguments: dict[str, Any]
    build_shards: int
    root: Path
    artifacts: Path
    experiment: str
    log: Path
    environment: dict[str, str]


def run(arguments: dict[str, Any], root: Path, build_shards: int) -> None:
    """Run the pipeline with `arguments`, its artifacts below `root`; raise where a step fails."""
    from kfp import local

    from pipelines.few_shot import few_shot_pipeline

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), enable_caching=False)
    few_shot_pipeline(parallelism=1, run_id_by_label=False, build_shards=build_shards)(**arguments)


def main() -> int:
    """Do what one `EngineRequest` on standard input asks for; without one, nothing."""
    end_with_owner()
    from metalearn_core import tracking
    from metalearn_core.tracking_server import quiet_mlflow

    quiet_mlflow()
    import pipelines.few_shot  # noqa: F401  (while the request is being checked)

    content = sys.stdin.buffer.read()
    if not content:
        return 0
    request = EngineRequest.model_validate_json(content)
    os.environ.update(request.environment)
    with request.log.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    try:
        tracking.prepare(os.environ["MLFLOW_TRACKING_URI"], request.artifacts, request.experiment)
        run(request.arguments, request.root, request.build_shards)
    except (MetalearnError, OSError) as error:
        emit("error", "run", text=one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take its modules down one by one takes a second
