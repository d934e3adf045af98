"""The options of a pipeline run are the same for every verb that starts one."""

import inspect
from typing import Annotated

import typer
from typer.testing import CliRunner

from pipelines.command_line import runs, submit
from pipelines.command_line.cluster_options import takes_placement_options
from pipelines.command_line.pipeline_options import takes_pipeline_options
from pipelines.config import RunConfig

OUTSIDE = {"settings", "eval_seed", "gate", "cluster"}  # set in a file, by --set, or by options of their own


def test_run_and_submit_take_every_option_of_a_configuration() -> None:
    names = {"learners": "learner", "sweep": "sweep"}
    wanted = {names.get(name, name) for name in RunConfig.model_fields} - OUTSIDE
    for verb in (runs.run, submit.submit):
        assert wanted <= set(inspect.signature(verb).parameters)


def test_compile_and_submit_take_the_same_options_of_the_placement() -> None:
    taken = inspect.signature(takes_placement_options(lambda placement_for: None)).parameters
    assert len(taken) == 12
    for verb in (runs.compile_, submit.submit):
        has = inspect.signature(verb).parameters
        assert {name: has[name].annotation for name in taken} == {name: one.annotation for name, one in taken.items()}
        assert "placement_for" not in has


def test_a_verb_gets_the_configuration_and_its_own_options() -> None:
    got = []

    @takes_pipeline_options
    def verb(
        settings: RunConfig, colour: Annotated[str, typer.Option("--colour", help="Of the shed.")] = "red"
    ) -> None:
        """Do it."""
        got.append((settings, colour))

    app = typer.Typer()
    app.command()(verb)
    ended = CliRunner().invoke(app, ["photos", "--way", "7", "--set", "maml.inner_steps=3", "--colour", "blue"])
    assert ended.exit_code == 0, ended.output
    ((settings, colour),) = got
    assert (settings.source, settings.way, colour) == ("photos", 7, "blue")
    assert settings.settings == {"maml": {"inner_steps": 3}}
    text = CliRunner().invoke(app, ["--help"]).output
    assert "Do it." in text
    assert {"--way", "--colour"} <= set(text.split())
