"""Recipes: the settings of papers as configuration files, by name: `--config omniglot-5way-protonet`."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from metalearn_core.errors import UsageError

FOLDER = Path(__file__).parent
_SUFFIX, _COMMENT = ".yaml", "#"


@dataclass(frozen=True)
class Recipe:
    """A configuration file that comes with the package.

    Attributes:
        name: by which `--config` takes it.
        file: where it is.
        summary: its first line.
    """

    name: str
    file: Path
    summary: str


def recipes() -> list[Recipe]:
    """Return the recipes, by name."""
    return list(_found())


def _found() -> Iterator[Recipe]:
    for file in sorted(FOLDER.glob(f"*{_SUFFIX}")):
        first, _, _ = file.read_text().partition("\n")
        yield Recipe(file.stem, file, first.lstrip(f"{_COMMENT} "))


def recipe_named(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        UsageError: there is none; it names the nearest.
    """
    for recipe in _found():
        if recipe.name == name:
            return recipe
    raise UsageError(f"there is no recipe of that name: {_hint(name)}")


def config_file(given: Path) -> Path:
    """Return the file that `--config` means: a path, or else a recipe's name.

    Raises:
        UsageError: there is no such file, and no recipe of that name; it names the nearest.
    """
    if given.exists() or given.suffix or len(given.parts) != 1:
        return given
    try:
        return recipe_named(given.name).file
    except UsageError:
        message = f"--config {given}: there is no such file, and no recipe of that name: {_hint(given.name)}"
        raise UsageError(message) from None


def _hint(name: str) -> str:
    near = get_close_matches(name, [recipe.name for recipe in _found()], n=1)
    return f"did you mean {near[0]!r}?" if near else "`metalearn recipes` lists them"
