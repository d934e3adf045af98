"""The verbs of the registry: `models`, `promote`, `rollback`."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    GateSetOption,
    JsonOption,
    OwnQueryOption,
    OwnShotOption,
    OwnWayOption,
    WorkdirOption,
    answers,
    given,
    notices,
    percent,
    print_json,
    print_reasons,
    print_table,
    workdir_at,
)


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn models")(models)
    app.command(epilog="Example:  metalearn promote few-shot@candidate --set gate.min_accuracy=0.9")(promote)
    app.command(epilog='Example:  metalearn rollback few-shot --reason "confuses b and d"')(rollback)


def models(workdir: WorkdirOption = DEFAULT_WORKDIR, json: JsonOption = False) -> None:
    """List registered models: versions, aliases, accuracy."""
    from dataclasses import asdict

    from metalearn_core import model_versions

    workdir_at(workdir).open_tracking()
    listed = model_versions.models()
    if json:
        print_json({"models": [asdict(entry) for entry in listed]})
        return
    if not listed:
        answers.print("no model is registered yet; `metalearn run` registers one")
        return
    rows = [
        [
            entry.name,
            str(entry.version),
            ", ".join(entry.aliases) or "–",
            entry.learner or "–",
            percent(entry.accuracy),
            entry.created.astimezone().strftime("%Y-%m-%d %H:%M"),
        ]
        for entry in listed
    ]
    print_table(["model ", "version", "aliases ", "learner ", "test, %", "registered "], rows)


def promote(
    model: Annotated[str, typer.Argument(help="name@alias, models:/name@alias or models:/name/version.")],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Dataset to take the test classes from.", show_default="the model's own"),
    ] = None,
    way: OwnWayOption = None,
    shot: OwnShotOption = None,
    query: OwnQueryOption = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=2, help="Number of test episodes.", show_default="1000")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the stream of episodes.", show_default="0")
    ] = None,
    set_: GateSetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Promote it whatever the rules say; needs --reason.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Reason for --force; kept with the decision.")] = "",
    to: Annotated[
        str | None,
        typer.Option("--to", help="Another tracking URI: copy the version there as a candidate, and stop."),
    ] = None,
    to_name: Annotated[
        str | None, typer.Option("--to-name", help="Name of the model there; by default the same.")
    ] = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Let the gate compare a model with the champion, and promote it where its rules allow; exit status 1 where not.

    With --to, the version goes to another registry instead, where the gate decides when it is asked there.
    """
    from metalearn_core.errors import UsageError
    from metalearn_core.promotion_record import NOTHING_MOVED, and_then
    from metalearn_core.steps.promotion import promote_model
    from metalearn_core.steps.requests import gate_rules
    from pipelines.command_line.watch import watching
    from pipelines.config import read_config

    if force == (not reason.strip()):
        raise UsageError("--force and --reason go together: say why the rules are left out of account")
    if to or to_name:
        if force or dataset or set_ or given(way=way, shot=shot, query=query, episodes=episodes, seed=seed):
            raise UsageError(
                "--to copies a version, and no gate decides: leave out --force, --dataset, --set, --way, --shot, "
                "--query, --episodes and --seed"
            )
        _copy(model, to, to_name, workdir, json)
        return
    config = read_config(None, {}, set_ or [], [])
    if config.settings:
        raise UsageError(f"--set: promotion has options of the gate alone, got some of {sorted(config.settings)[0]}")
    gate_rules(config.gate)
    with and_then(NOTHING_MOVED), watching(notices):
        workdir_at(workdir).open_tracking()
        shape = given(way=way, shot=shot, query=query)
        forced = reason if force else None
        outcome = promote_model(model, dataset, shape, episodes or 1000, seed or 0, config.gate, forced)
    if json:
        print_json(outcome.model_dump(mode="json"))
    else:
        answers.print(
            f"models:/{outcome.model_name}/{outcome.version} is {'promoted' if outcome.promoted else 'not promoted'}:"
        )
        print_reasons(outcome.reasons)
    raise typer.Exit(0 if outcome.promoted else 1)


def _copy(model: str, to: str | None, to_name: str | None, workdir: Path, json: bool) -> None:
    """Copy a version to another registry."""
    from dataclasses import asdict

    from metalearn_core.bundle_fetch import registered_address
    from metalearn_core.errors import UsageError
    from metalearn_core.registry_copy import copy_version

    address = registered_address(model)
    if to is None:
        raise UsageError("--to-name: wants --to, the tracking URI of the other registry")
    if address is None:
        raise UsageError(f"model {model!r}: only a registered model is copied: name@alias or models:/name/version")
    workdir_at(workdir).open_tracking()
    copied = copy_version(*address, to, to_name)
    if json:
        print_json(asdict(copied))
        return
    answers.print(f"{copied.uri} there, its candidate: the same bundle, {copied.bundle_digest[:12]}", soft_wrap=True)
    notices.print(
        f"the gate there decides:  MLFLOW_TRACKING_URI=… metalearn promote {copied.name}@candidate --dataset …",
        soft_wrap=True,
        markup=False,
    )


def rollback(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    reason: Annotated[
        str, typer.Option("--reason", help="Kept on the version, and shown to whoever promotes it.")
    ] = "",
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Make the previous champion the champion again, after checking that its bundle is whole."""
    from metalearn_core.promotion_record import NOTHING_MOVED, and_then
    from metalearn_core.rollback import rollback as roll_back
    from metalearn_core.steps.promotion import person

    with and_then(NOTHING_MOVED):
        workdir_at(workdir).open_tracking()
        outcome = roll_back(name, reason, person())
    if json:
        print_json(outcome.model_dump(mode="json"))
    else:
        answers.print("\n".join(outcome.reasons), markup=False)
