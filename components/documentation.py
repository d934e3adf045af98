"""Write each component's README from its signature and docstring, so that it cannot drift from the code.

Run as `python -m components.documentation`; a test holds that the files are what this writes.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse

ROOT = Path(__file__).parent
NAMES = tuple(sorted(folder.parent.name for folder in ROOT.glob("*/component.py")))


def component(name: str) -> Any:
    """Return the KFP component in the folder `name`."""
    return getattr(import_module(f"components.{name}.component"), name)


def readme(name: str) -> str:
    """Return the README of the component `name`: what it does, its inputs and its outputs."""
    spec = component(name).component_spec
    docstring = parse(component(name).python_func.__doc__)
    told = {entry.arg_name: entry.description for entry in docstring.params}
    returned = docstring.returns.description if docstring.returns else ""
    metadata = yaml.safe_load((ROOT / name / "metadata.yaml").read_text())
    description = (spec.description or "").strip()
    lines = [f"# {name}", "", description, "", f"Stability: {metadata['stability']}.", "", "## Inputs", ""]
    lines += _table(
        ["name", "type", "what"],
        [[f"`{key}`", _type(value.type), value.description or ""] for key, value in (spec.inputs or {}).items()],
    )
    outputs = [
        [f"`{key}`", _type(value.type), value.description or told.get(key) or returned or ""]
        for key, value in (spec.outputs or {}).items()
    ]
    if outputs:
        lines += ["", "## Outputs", "", *_table(["name", "type", "what"], outputs)]
    return "\n".join(lines) + "\n"


def _type(name: str) -> str:
    return name.removeprefix("system.").split("@")[0]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *([" ".join(cell.split()) for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def main() -> None:
    """Write all READMEs."""
    for name in NAMES:
        (ROOT / name / "README.md").write_text(readme(name))


if __name__ == "__main__":
    main()
