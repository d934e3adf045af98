"""The folders show the architecture, and imports keep to it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {"pipelines", "components", "metalearn_core", "infra", "tests", "docs", "benchmarks", ".ci"}
TOP_FILES = {"pyproject.toml", "Makefile", "README.md", "LICENSE", ".gitignore"}

# what each part may not import
FORBIDDEN = {
    "metalearn_core": ("kfp", "components", "pipelines", "infra"),
    "components": ("pipelines", "infra"),
    "pipelines": ("infra",),
    "metalearn_core/data": (
        "metalearn_core.learners",
        "metalearn_core.backbones",
        "metalearn_core.training",
        "metalearn_core.evaluation",
    ),
    "metalearn_core/backbones": ("metalearn_core.learners", "metalearn_core.training", "metalearn_core.evaluation"),
    "metalearn_core/learners": ("metalearn_core.training", "metalearn_core.evaluation", "mlflow"),
    "metalearn_core/evaluation": ("metalearn_core.explanation", "metalearn_core.report"),
    "metalearn_core/explanation": ("metalearn_core.report", "mlflow"),
    "metalearn_core/training": ("mlflow", "metalearn_core.tracking", "metalearn_core.registry"),
}
# what costs seconds to import, and is therefore never imported when a module is
HEAVY = ("mlflow", "kfp", "great_expectations", "matplotlib", "sklearn")


def imports(path: Path, *, top_level_only: bool = False, of_types: bool = True) -> Iterator[str]:
    """Yield the modules that a file imports; of `from metalearn_core import x` the module x."""
    tree = ast.parse(path.read_text())
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    types = {id(node) for guard in guarded for node in ast.walk(guard)}
    for node in tree.body if top_level_only else ast.walk(tree):
        if not of_types and id(node) in types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "metalearn_core":
            yield from (f"metalearn_core.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def tracked() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return listed.stdout.splitlines()


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_down_only(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            assert not name.startswith(FORBIDDEN[folder]), f"{path.relative_to(ROOT)} imports {name}"


def test_no_part_of_the_core_needs_itself_by_way_of_others() -> None:
    """A part is a folder of metalearn_core or a module beside them; imports inside functions count, those of types not.

    `static_order` names the circle where there is one.
    """
    needed: dict[str, set[str]] = {}
    for path in (ROOT / "metalearn_core").rglob("*.py"):
        part = _part(".".join(path.relative_to(ROOT).with_suffix("").parts))
        found = {_part(name) for name in imports(path, of_types=False) if name.startswith("metalearn_core.")}
        needed.setdefault(part, set()).update(found - {part})
    assert list(TopologicalSorter(needed).static_order())
    assert {"data", "learners", "bundle", "bundle_fetch", "promotion"} <= needed.keys()


def _part(module: str) -> str:
    return module.split(".")[1]


def test_heavy_libraries_are_imported_only_where_they_are_used() -> None:
    kfp = ("pipelines/few_shot.py", "pipelines/cluster/client.py", "pipelines/cluster/tasks.py")
    allowed = ("components/", *kfp, "tests/", "benchmarks/")
    for name in tracked():
        path = ROOT / name
        if name.endswith(".py") and path.exists() and not name.startswith(allowed) and "serving" not in name:
            for imported in imports(path, top_level_only=True):
                assert imported.split(".")[0] not in HEAVY, f"{name} imports {imported} when it is imported"


def test_the_top_level_holds_what_the_design_lists() -> None:
    tops = {name.split("/")[0] for name in tracked()}
    assert tops <= TOP_LEVEL | TOP_FILES


def test_importing_the_core_does_not_import_torch() -> None:
    code = "import sys, metalearn_core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['metalearn', '--help']\n"
        "from pipelines.command_line import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'mlflow', 'kfp', 'pandas', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"
