"""The documentation: it builds without a warning, and its commands are ones that there are.

That they do what the pages say is held by tests/test_documented_pages.py.
"""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from tests.test_documented_commands import EVERY, PAGES, PYTHON, ROOT

_MENTIONED = re.compile(r"`((?:metalearn|make|python -m) [^`]+)`")
_AROUND = re.compile(r"^(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?|\s*[|>&].*$")
_OF_NO_VERB = ("metalearn VERB", "metalearn --help")


def commands(program: str) -> list[tuple[str, str]]:
    """Find what follows a program in the commands of the pages, run or not, and in those that a sentence mentions."""
    shown = [(command.page, command.text) for command in EVERY if command.language != PYTHON]
    shown += [(page.name, text) for page in PAGES for text in _MENTIONED.findall(page.read_text())]
    shown = [(page, text.replace("…", "")) for page, text in shown if not text.startswith(_OF_NO_VERB)]
    plain = {(page, _AROUND.sub("", text).strip()) for page, text in shown}
    return sorted((page, text.removeprefix(program)) for page, text in plain if text.startswith(program))


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path / "pages")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pages" / "index.html").exists()


@pytest.mark.parametrize(("page", "line"), commands("metalearn "))
def test_a_command_has_only_verbs_and_options_that_there_are(page: str, line: str) -> None:
    from pipelines.command_line.main import app

    command, arguments = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "commands"):
        verb, *arguments = arguments
        assert verb in command.commands, f"{page}: there is no verb {verb}"
        command = command.commands[verb]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    used = {argument.partition("=")[0] for argument in arguments if argument.startswith("-") and len(argument) > 1}
    assert used <= known, f"{page}: {sorted(used - known)} of `metalearn {line}`"


@pytest.mark.parametrize(("page", "line"), commands("make "))
def test_a_command_makes_only_targets_that_there_are(page: str, line: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split(maxsplit=1)[0] in targets, f"{page}: `make {line}`"


@pytest.mark.parametrize(("page", "line"), commands("python -m "))
def test_a_command_names_only_modules_that_there_are(page: str, line: str) -> None:
    assert find_spec(line.split(maxsplit=1)[0]), f"{page}: `python -m {line}`"


def test_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
