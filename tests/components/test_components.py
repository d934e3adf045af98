"""Components are typed, documented, and make no promise that their README does not."""

import ast

import pytest
import yaml

from components.documentation import NAMES, ROOT, component, readme
from components.image import IMAGE


@pytest.mark.parametrize("name", NAMES)
def test_readme_is_what_the_signature_says(name: str) -> None:
    assert (ROOT / name / "README.md").read_text() == readme(name), "run: python -m components.documentation"


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_described(name: str) -> None:
    for key, value in (component(name).component_spec.inputs or {}).items():
        assert value.description, f"{name}: {key} has no description"


@pytest.mark.parametrize("name", NAMES)
def test_every_output_is_described(name: str) -> None:
    for row in readme(name).partition("## Outputs")[2].splitlines():
        assert not row.endswith(("|  |", "| the result |")), f"{name}: {row}"


@pytest.mark.parametrize("name", NAMES)
def test_metadata_names_the_component(name: str) -> None:
    metadata = yaml.safe_load((ROOT / name / "metadata.yaml").read_text())
    assert metadata["name"] == name
    assert metadata["stability"] in {"alpha", "beta", "stable"}


@pytest.mark.parametrize("name", NAMES)
def test_body_is_a_few_lines_around_the_core(name: str) -> None:
    tree = ast.parse((ROOT / name / "component.py").read_text())
    [function] = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]
    work = [node for node in statements if not isinstance(node, (ast.ImportFrom, ast.Import, ast.FunctionDef))]
    assert len(work) <= 12


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_at_run_time(name: str) -> None:
    container = component(name).component_spec.implementation.container
    assert container.image == IMAGE
    assert "pip install" not in " ".join(container.command)
