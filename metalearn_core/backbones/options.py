"""Options by name, from the command line, a config file or code, checked against a typed `Config`."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from metalearn_core.errors import UsageError, unknown

ConfigType = TypeVar("ConfigType", bound=BaseModel)


def split_numbers(value: Any) -> Any:
    """Return the parts of a text as `64,64`, and anything else as it is."""
    return [part for part in value.strip("()[] ").split(",") if part.strip()] if isinstance(value, str) else value


def parse_options(config: type[ConfigType], options: Mapping[str, Any], owner: str) -> ConfigType:
    """Return `config` made from `options`; strings, as a command line gives them, are read as the option's type.

    Args:
        config: the typed options, with their defaults.
        options: values by option name; the word `none` stands for None.
        owner: the learner or backbone that they are for, as errors name it.

    Raises:
        UsageError: an unknown option, named with the nearest known one; or a value of the wrong type or range.
    """
    for name in options:
        if name not in config.model_fields:
            raise unknown(f"option of {owner}", name, config.model_fields)
    values = {name: None if value in ("none", "None") else value for name, value in options.items()}
    try:
        return config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]) if first["loc"] else "options"
        wanted = first["msg"][:1].lower() + first["msg"][1:]
        raise UsageError(f"{owner}.{option}: got {options.get(option)!r}, {wanted}") from None
