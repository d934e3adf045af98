"""The pipeline on this machine, by KFP's local runners: every step a process or container, one learner at a time.

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
from pipelines.container_engine import docker_runner
from pipelines.containers import Containers
from pipelines.forked_steps import forked_steps, start_importing

FORKS = "--forks"  # an argument of the process: its steps will be forks, whose libraries can be imported now


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
        run_id: of the pipeline run.
        containers: that the steps run in; None: each is a process here.
    """

    arguments: dict[str, Any]
    build_shards: int
    root: Path
    artifacts: Path
    experiment: str
    log: Path
    environment: dict[str, str]
    run_id: str
    containers: Containers | None = None


def run(request: EngineRequest) -> None:
    """Run the pipeline as requested; raise where a step fails."""
    from kfp import local

    if request.containers is None:
        with forked_steps():
            _run(request, local.SubprocessRunner(use_venv=False))
    else:
        with docker_runner(request.containers, request.run_id, request.root.parent) as runner:
            _run(request, runner, image=request.containers.image)


def _run(request: EngineRequest, runner: Any, **settings: Any) -> None:
    from kfp import local

    from pipelines.few_shot import few_shot_pipeline

    workspace = request.root / "workspace"
    workspace.mkdir(parents=True)
    local.init(runner, pipeline_root=str(request.root), workspace_root=str(workspace), enable_caching=False)
    pipeline = few_shot_pipeline(parallelism=1, run_id_by_label=False, build_shards=request.build_shards, **settings)
    pipeline(**request.arguments)


def main() -> int:
    """Do what one `EngineRequest` on standard input asks for; without one, nothing."""
    end_with_owner()
    from metalearn_core import tracking
    from metalearn_core.tracking_server import quiet_mlflow

    quiet_mlflow()
    if FORKS in sys.argv:
        start_importing()
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
        run(request)
    except (MetalearnError, OSError) as error:
        emit("error", "run", text=one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take its modules down one by one takes a second
