"""The commands that README.md and docs/ show, and which of them a page says are not run; the rest are run.

A command is a line of a block of `sh`, or of an indented block in which a line begins with a program. Two marks say
that it is not run, and why: `# (not run: why)` behind the command, and for a whole block a paragraph below it that
begins with `*Not run*`. tests/test_documented_pages.py runs every command without a mark.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    *("metalearn", "make", "python", "python3", "pip", "mlflow", "curl", "kubectl", "kind", "docker", "podman"),
    *("eval", "export", "set", "createdb", "pg_dump"),
}
SHELL, PYTHON = ("", "sh", "bash", "shell", "console"), "python"
_INDENT = "    "
_FIRST_WORD = re.compile(r"^(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?(?P<program>[\w-]+)(?= |$)")
_MARK = re.compile(r"#? *\(not run(?:: (?P<why>[^)]+))?.*\)\s*$", re.IGNORECASE)
_NOTE = re.compile(r"\*Not run\*(?P<why>.{10,})")
_COMMENT = re.compile(r"\s+#\s.*$|^#.*$")
_NAMED_FILE = re.compile(r"^`[\w./]+`:$")


@dataclass
class Block:
    """Lines that a page sets apart, without their indent; `before` and `after` are the paragraphs around it."""

    language: str
    line: int
    before: str
    lines: list[str] = field(default_factory=list)
    after: str = ""


@dataclass(frozen=True)
class Command:
    """What a page asks its reader to run: a line for the shell, or a piece of Python.

    Attributes:
        page, line: where it stands.
        text: the command as one line without comment; of Python, the whole block.
        not_run: why it is not run; None: it is run.
        unexplained: it is marked, but no reason is given.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    unexplained: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks(text: str) -> Iterator[Block]:
    """Find the blocks of a page, fenced or indented, in its order."""
    lines = text.splitlines()
    found: list[tuple[Block, int]] = []
    before, number = "", 0
    while number < len(lines):
        fence = re.match(r"^```([\w{}]*)$", lines[number])
        indented = lines[number].startswith(_INDENT) and (number == 0 or not lines[number - 1].strip())
        start = number
        if fence:
            block = Block(fence[1], start + 2, before)
            number += 1
            while lines[number] != "```":
                block.lines.append(lines[number])
                number += 1
            number += 1
        elif indented:
            block = Block("", start + 1, before)
            while number < len(lines) and lines[number].startswith(_INDENT):
                block.lines.append(lines[number][len(_INDENT) :])
                number += 1
        else:
            before = lines[number] or before
            number += 1
            continue
        found.append((block, number))
    for block, end in found:
        block.after = next((line for line in lines[end:] if line.strip()), "")
        yield block


def commands_in(page: str, text: str) -> list[Command]:
    """Return the commands of a page, in its order."""
    return [command for block in blocks(text) for command in _commands_of(page, block)]


def _commands_of(page: str, block: Block) -> Iterator[Command]:
    note = _NOTE.match(block.after)
    if block.language == PYTHON and not _NAMED_FILE.match(block.before):
        yield Command(page, block.line, PYTHON, "\n".join(block.lines), note["why"] if note else None)
    if block.language not in SHELL:
        return
    logical = list(_logical_lines(block))
    if block.language == "" and not any(_program(text) in PROGRAMS for _, text in logical):
        return  # a tree of folders, a formula, what a command prints
    for line, text in logical:
        mark = _MARK.search(text)
        why = (mark["why"] if mark else None) or (note["why"] if note else None)
        shown = _COMMENT.sub("", _MARK.sub("", text)).strip()
        if shown:
            yield Command(page, line, "sh", shown, why, bool(mark) and not why)


def _logical_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Join the lines that end with a backslash; skip empty ones."""
    start, joined = 0, ""
    for number, line in enumerate(block.lines, block.line):
        start = start if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if joined:
            yield start, joined
        joined = ""


def _program(text: str) -> str:
    found = _FIRST_WORD.match(text)
    return found["program"] if found else ""


def documented() -> dict[str, list[Command]]:
    """Return the commands of every page, by the page's name."""
    return {page.name: commands_in(page.name, page.read_text()) for page in PAGES}


EVERY = [command for commands in documented().values() for command in commands]


@pytest.mark.parametrize("command", [c for c in EVERY if c.language == "sh"], ids=str)
def test_a_command_begins_with_a_program_that_is_known_and_a_mark_says_why(command: Command) -> None:
    assert _program(command.text) in PROGRAMS, f"{command}: no known program; is it a command?"
    assert not command.unexplained, f"{command}: `(not run: why)` wants the reason"


def test_what_only_a_cluster_has_is_marked() -> None:
    """These can be run by no test; what else is not marked is run, and fails where it cannot be."""
    assert [
        str(c) for c in EVERY if not c.not_run and _program(c.text) in {"kubectl", "kind", "podman", "docker"}
    ] == []


def test_most_commands_are_run() -> None:
    run = [command for command in EVERY if not command.not_run]
    assert len(run) > 0.6 * len(EVERY), [str(command) for command in EVERY if command.not_run]


PAGE = """# A page

    metalearn learners        # lists them

    photos/
      bolts/      a folder

Text with `metalearn models` in it.

    make image   # (not run: wants Docker)
    metalearn compile --image a \\
        -o out.yaml
    make ui   # (not run)

```sh
kubectl get pods
```

*Not run*: no cluster was at hand.

```python
print("hello")
```

`file.py`:

```python
print("not asked for")
```
"""


def test_the_commands_of_a_page_are_found_with_their_marks() -> None:
    found = commands_in("page.md", PAGE)
    assert [(c.line, c.language, c.text) for c in found] == [
        (3, "sh", "metalearn learners"),
        (10, "sh", "make image"),
        (11, "sh", "metalearn compile --image a -o out.yaml"),
        (13, "sh", "make ui"),
        (16, "sh", "kubectl get pods"),
        (22, "python", 'print("hello")'),
    ]
    assert [c.not_run for c in found] == [None, "wants Docker", None, None, ": no cluster was at hand.", None]
    assert [c.unexplained for c in found] == [False, False, False, True, False, False]
