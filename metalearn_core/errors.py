"""The errors that a person is meant to read: one line that says what was found, and what is wanted."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class MetalearnError(Exception):
    """An expected failure: bad data, a damaged file, a service that is away. Shown as one line, exit status 1."""

    exit_status = 1


class UsageError(MetalearnError):
    """A wrong option, name or combination: found before any work starts. Exit status 2."""

    exit_status = 2


class StorageError(MetalearnError):
    """A bucket that cannot be read or written now: nothing is wrong with what is kept in it."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """Return the error for a `name` that is none of the `choices`, with the nearest valid one."""
    known = sorted(choices)
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there is"
    return UsageError(f"unknown {kind} {name!r}: {hint} ({', '.join(known)})")


def invalid(what: str, error: "ValidationError", model: "type[BaseModel]") -> UsageError:
    """Return pydantic's first complaint about values for `model` as one line: the option, what was found and wanted."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown(what, name, model.model_fields)
    return UsageError(f"{what} {name}: got {first['input']!r}: {first['msg'].lower()}")


def complaint(error: "ValidationError") -> str:
    """Return pydantic's first complaint about what was read: the field, where it is about one, and what is wrong."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {first['msg'].lower()}" if field else first["msg"].lower()


def one_line(error: BaseException) -> str:
    """Return an error as the one line that a person reads, whatever raised it.

    An `OSError` names its file and the reason (no space left, permission denied); any other foreign error its type.
    """
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror.lower()}"
    elif isinstance(error, MetalearnError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())
