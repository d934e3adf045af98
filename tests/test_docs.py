"""The documentation: it builds without a warning, and its commands are ones that there are."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_COMMAND = re.compile(r"^ +(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?metalearn (?P<rest>.+)$")
_AFTER = re.compile(r"\s{2,}#.*|\s+\(not run.*|\s*[|>&].*|\s*\\$")


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for line in page.read_text().splitlines():
            if found := _COMMAND.match(line):
                yield page.name, _AFTER.sub("", found["rest"]).replace("…", "").strip()


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path / "pages")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pages" / "index.html").exists()


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
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


def test_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
