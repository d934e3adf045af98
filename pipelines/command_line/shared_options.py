"""Options that several verbs have in common, declared once: a verb gets what they make as one parameter."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def with_shared(verb: Callable[..., None], name: str, make: Callable[..., Any]) -> Callable[..., None]:
    """Return a verb that has the options of `make` in place of its parameter `name`, which gets what `make` returns.

    Args:
        verb: as Typer takes it.
        name: of its parameter.
        make: its parameters are options.
    """
    shared = inspect.signature(make).parameters
    parameters = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(verb).parameters.values()
        for one in (shared.values() if parameter.name == name else [parameter])
    ]

    @wraps(verb)
    def with_options(**values: Any) -> None:
        made = make(**{option: values.pop(option) for option in shared})
        verb(**{name: made}, **values)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options
