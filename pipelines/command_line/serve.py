"""The verb `serve`: a model behind HTTP."""

from typing import Annotated

import typer
from rich.text import Text

from pipelines.command_line.options import DEFAULT_WORKDIR, WorkdirOption, notices, workdir_at
from pipelines.command_line.ports import check_free


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(epilog="Example:  metalearn serve few-shot@champion --port 8080")(serve)


def serve(
    model: Annotated[str, typer.Argument(help="A bundle (a folder, s3://…), models:/name@alias, or name@alias.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 means all interfaces, without authentication.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen on.")] = 8080,
    body_mb: Annotated[
        float, typer.Option("--body-mb", min=0.01, help="Largest body of a request, in megabytes.")
    ] = 16,
    seconds: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds in which a request must arrive.")] = 10,
    kept_mb: Annotated[
        float, typer.Option("--kept-mb", min=0, help="Memory for adapted classifiers, in megabytes.")
    ] = 256,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
) -> None:
    """Serve a model over HTTP: predict, adapt once and ask often, health, metrics; ends with Ctrl-C.

    The requests are described at /docs and /openapi.json, and in docs/serving.md.
    """
    import torch

    from metalearn_core.errors import UsageError
    from metalearn_core.model import RegressionModel, load_model
    from metalearn_core.serving.application import make_application
    from metalearn_core.serving.classifiers import token_of
    from metalearn_core.serving.limits import Limits
    from metalearn_core.serving.server import listen

    check_free(host, port)
    workdir_at(workdir).open_for(model)
    loaded = load_model(model)
    if isinstance(loaded, RegressionModel):
        raise UsageError(f"model {model}: predicts numbers; only classifiers are served: use it in Python")
    limits = Limits(body_bytes=int(body_mb * 2**20), seconds=seconds, classifier_bytes=int(kept_mb * 2**20))
    torch.set_num_threads(1)  # requests run side by side
    application = make_application(loaded, model, limits)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if loaded.has_support:
        own = f"{address}/adapted/{token_of(loaded.digest)}/predict"
        notices.print(Text(f"{model}: its support set is adapted to; send queries to {own}"), soft_wrap=True)
    notices.print(Text(f"{model}: {address}, described at {address}/docs; Ctrl-C ends it"), soft_wrap=True)
    listen(application, host, port, seconds)
