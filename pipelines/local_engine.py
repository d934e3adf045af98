"""The pipeline on this machine, by KFP's local runner: every step a process of its own, one learner at a time.

The command line starts this module as a process of its own, so that KFP's output goes to a log file.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from metalearn_core.errors import MetalearnError, one_line
from metalearn_core.events import emit
from metalearn_core.lifetime import end_with_owner


def run(arguments: dict[str, Any], root: Path) -> None:
    """Run the pipeline with `arguments`, its artifacts below `root`; raise where a step fails."""
    from kfp import local

    from pipelines.few_shot import few_shot_pipeline

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), enable_caching=False)
    few_shot_pipeline(parallelism=1, run_id_by_label=False)(**arguments)


def main() -> int:
    """Run the request in the file that is named, JSON with `arguments`, `root`, `artifacts` and `experiment`."""
    from metalearn_core import tracking

    end_with_owner()
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        tracking.prepare(os.environ["MLFLOW_TRACKING_URI"], Path(request["artifacts"]), request["experiment"])
        run(request["arguments"], Path(request["root"]))
    except (MetalearnError, OSError) as error:
        emit("error", "run", text=one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
