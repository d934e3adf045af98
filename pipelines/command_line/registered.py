"""The verbs of the registry: `models`, `promote`, `rollback`."""

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
        str | None, typer.Option("--dataset", help="Test classes come from it.", show_default="the model's own")
    ] = None,
    way: OwnWayOption = None,
    shot: OwnShotOption = None,
    query: OwnQueryOption = None,
    episodes: Annotated[int, typer.Option("--episodes", min=2, help="How many.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of the stream of episodes.")] = 0,
    set_: GateSetOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Let the gate compare a model with the champion, and promote it where its rules allow; exit status 1 where not."""
    from metalearn_core.errors import UsageError
    from metalearn_core.steps.promotion import promote_model
    from metalearn_core.steps.requests import gate_rules
    from pipelines.command_line.watch import watching
    from pipelines.config import read_config

    config = read_config(None, {}, set_ or [], [])
    if config.settings:
        raise UsageError(f"--set: promotion has options of the gate alone, got some of {sorted(config.settings)[0]}")
    gate_rules(config.gate)
    workdir_at(workdir).open_tracking()
    with watching(notices):
        outcome = promote_model(model, dataset, given(way=way, shot=shot, query=query), episodes, seed, config.gate)
    if json:
        print_json(outcome.model_dump(mode="json"))
    else:
        answers.print(
            f"models:/{outcome.model_name}/{outcome.version} is {'promoted' if outcome.promoted else 'not promoted'}:"
        )
        for reason in outcome.reasons:
            answers.print(f"  - {reason}", soft_wrap=True, markup=False)
    raise typer.Exit(0 if outcome.promoted else 1)


def rollback(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    reason: Annotated[str, typer.Option("--reason", help="Kept on the version, and told to who promotes it.")] = "",
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Make the previous champion the champion again, after checking that its bundle is whole."""
    from metalearn_core import promotion

    workdir_at(workdir).open_tracking()
    outcome = promotion.rollback(name, reason)
    if json:
        print_json(outcome.model_dump(mode="json"))
    else:
        answers.print("\n".join(outcome.reasons), soft_wrap=True, markup=False)
