"""The verbs that say what there is: `learners` and `recipes`."""

from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    JsonOption,
    WorkdirOption,
    answers,
    notices,
    print_json,
    print_table,
)


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn learners --json")(learners)
    app.command(epilog="Example:  metalearn recipes omniglot-5way-protonet")(recipes)


def learners(workdir: WorkdirOption = DEFAULT_WORKDIR, json: JsonOption = False) -> None:
    """List the learners with their options and defaults; then the options of backbones, and the gate's rules."""
    from metalearn_core.errors import UsageError, one_line
    from metalearn_core.gate import GateRules
    from metalearn_core.learners import BACKBONES, learner_class, learner_names

    listed = []
    for name in learner_names():
        try:
            listed.append(_description(learner_class(name)))
        except UsageError as error:  # a broken plugin hides no other learner
            notices.print(f"warning: {one_line(error)}", soft_wrap=True, markup=False)
    if json:
        print_json(listed)
        return
    for entry in listed:
        answers.print(f"[bold]{entry['name']}[/]  {entry['family']}", soft_wrap=True)
        answers.print(Padding(Text(entry["paper"]), (0, 0, 0, 2)))
        _print_options(entry["options"])
    for name, kind in sorted(BACKBONES.items()):
        answers.print(f"[bold]{name}[/]  backbone: --backbone {name}, options as --set backbone.…", soft_wrap=True)
        _print_options(_options(kind.Config))
    answers.print("[bold]gate[/]  the rules of promotion: --set gate.…", soft_wrap=True)
    _print_options(_options(GateRules))


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this one, to copy and change it.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the papers' settings that `run --config NAME` takes, or print one."""
    from pipelines.recipes import recipe_named
    from pipelines.recipes import recipes as known

    listed = known() if name is None else [recipe_named(name)]
    if json:
        print_json([{"name": entry.name, "summary": entry.summary, "file": str(entry.file)} for entry in listed])
    elif name is not None:
        typer.echo(listed[0].file.read_text(), nl=False)
    else:
        print_table(["recipe ", "what it is "], [[entry.name, entry.summary] for entry in listed])


def _options(config: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {"default": field.default, "description": field.description or ""}
        for name, field in config.model_fields.items()
    }


def _print_options(options: dict[str, dict[str, Any]]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, option in options.items():
        default = option["default"]
        shown = f"{default:g}" if isinstance(default, float) else default
        table.add_row(Text(f"{name} = {shown}", no_wrap=True), Text(option["description"], style="dim"))
    answers.print(Padding(table, (0, 0, 1, 4)))


def _description(learner: Any) -> dict[str, Any]:
    info = learner.info
    return {
        "name": info.name,
        "family": info.family,
        "paper": info.paper,
        "transductive": info.transductive,
        "options": _options(learner.Config),
    }
