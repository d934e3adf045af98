"""The verbs about this machine: `ui` and `doctor`."""

import os
import sys
from typing import Annotated

import typer

from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    JsonOption,
    WorkdirOption,
    notices,
    print_json,
    print_table,
    workdir_at,
)
from pipelines.command_line.ports import check_free


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn ui --port 5001")(ui)
    app.command(epilog="Example:  metalearn doctor")(doctor)


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Local port to listen on.")] = 5000,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Open MLflow's page on the runs and models of the work directory; ends with Ctrl-C."""
    from metalearn_core import tracking
    from metalearn_core.tracking_page import models_page, runs_page
    from metalearn_core.tracking_server import shown

    directory = workdir_at(workdir)
    uri = directory.open_tracking()
    if not uri.startswith("http"):
        check_free("127.0.0.1", port)
    address = shown(uri) if uri.startswith("http") else f"http://127.0.0.1:{port}"
    experiment = tracking.latest_experiment()
    runs = runs_page(address, experiment.experiment_id, experiment.tags) if experiment else address
    models = models_page(address)
    if json:
        print_json({"address": address, "runs": runs, "models": models, "tracking_uri": shown(uri)})
    notices.print(f"the runs: {runs}\nthe models: {models}", soft_wrap=True)
    if uri.startswith("http"):
        return
    notices.print("ready in some seconds; Ctrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--artifacts-destination", str(directory.artifacts), "--serve-artifacts"]
    command += ["--uvicorn-opts", "--log-level warning"]
    os.environ["PYTHONWARNINGS"] = "ignore"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # on the command line, every user of the machine could read a password
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven more processes that nothing here uses
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.execv(sys.executable, command)


def doctor(workdir: WorkdirOption = DEFAULT_WORKDIR, json: JsonOption = False) -> None:
    """Check this machine: versions, devices, space, the tracking store; exit status 1 where something is wrong."""
    from pipelines.diagnosis import diagnose

    findings = diagnose(workdir_at(workdir))
    if json:
        print_json({"ok": all(f.ok for f in findings), "findings": [f.__dict__ for f in findings]})
    else:
        print_table(["", "check ", "found "], [["ok" if f.ok else "BAD", f.check, f.found] for f in findings])
    raise typer.Exit(0 if all(f.ok for f in findings) else 1)
