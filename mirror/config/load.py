"""Settings from their sources, or every mistake in them at once."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mirror.config.model import WELL_KNOWN, Settings, contradictions
from mirror.config.sources import (
    MAX_FILE_BYTES,
    KeyPath,
    Place,
    Source,
    overlay_environment,
    read_file,
    underlay_proxies,
    variable_of,
)

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Where the library's own words would not help an operator.
_MESSAGES = {
    "bool_parsing": "this must be true or false",
    "bool_type": "this must be true or false",
    "dict_type": "this must be a mapping, one `key: value` per line",
    "frozen_set_type": "this must be a list, like [one, two]",
    "greater_than": "this must be longer than 0s",
    "int_from_float": "this must be a whole number",
    "int_parsing": "this must be a whole number",
    "int_type": "this must be a whole number",
    "model_type": "this must be a mapping, one `key: value` per line",
    "path_type": "this must be a path, as text",
    "string_type": "this must be text; quote a value that looks like a number or true/false",
    "tuple_type": "this must be a list, like [one, two]",
}


@dataclass(frozen=True, slots=True)
class Mistake:
    """`path` is like `upstreams["docker.io"].tag_ttl`."""

    path: str
    place: Place | None
    message: str

    def __str__(self) -> str:
        where = ": ".join(str(part) for part in (self.place, self.path) if part)
        return f"{where}: {self.message}" if where else self.message


class ConfigurationError(Exception):
    """All mistakes, in the order of the file, then of the environment."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=_in_order)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def load(file: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises ConfigurationError. Without a file: the built-in defaults, and the environment."""
    source = _read(file, environment)
    overlay_environment(source, environment, set(Settings.model_fields))
    underlay_proxies(source, environment)
    found = list(contradictions(source.values))
    settings = None
    try:
        settings = Settings.model_validate(source.values)
    except ValidationError as error:
        told = [(tuple(each["loc"]), each) for each in error.errors(include_url=False)]
        found += [(path, _message(path, each, source)) for path, each in told]
    unread = {path for path, _ in source.mistakes}
    found = [*source.mistakes, *(mistake for mistake in found if mistake[0] not in unread)]
    if found or settings is None:
        raise ConfigurationError(
            Mistake(_written(path), source.place_of(path), message) for path, message in found
        )
    return settings


def _read(file: Path | None, environment: Mapping[str, str]) -> Source:
    if file is None:
        return Source()
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigurationError([_about(file, f"is larger than {MAX_FILE_BYTES} bytes")])
        return read_file(content.decode(), str(file), environment)
    except OSError as error:
        message = f"cannot be read: {error.strerror}; check --config or MIRROR_CONFIG"
        raise ConfigurationError([_about(file, message)]) from error
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text at byte {error.start}"
        raise ConfigurationError([_about(file, message)]) from error


def _about(file: Path, message: str) -> Mistake:
    return Mistake("", Place(str(file)), message)


def _message(path: KeyPath, error: ErrorDetails, source: Source) -> str:
    match error["type"]:
        case "extra_forbidden" if path in source.variables:
            return _unknown_variable(path)
        case "extra_forbidden":
            return _unknown_key(path)
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case "missing" if path[-1] == "endpoints":
            return f"this is required, except for {', '.join(WELL_KNOWN)}"
        case "missing":
            return "this is required"
        case kind:
            return _MESSAGES.get(kind) or _in_our_words(error["msg"])


def _in_our_words(message: str) -> str:
    ours = message.replace("Input should", "this must", 1)
    return ours[0].lower() + ours[1:]


def _unknown_key(path: KeyPath) -> str:
    return f"unknown key; {_hint(str(path[-1]), {key: key for key in _known_keys(path[:-1])})}"


def _unknown_variable(path: KeyPath) -> str:
    variables = {key: variable_of((*path[:-1], key)) for key in _known_keys(path[:-1])}
    return f"no setting has this name; {_hint(str(path[-1]), variables)}"


def _hint(key: str, known: Mapping[str, str]) -> str:
    """`known`: how each key is to be shown."""
    if nearest := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {known[nearest[0]]}?"
    return f"known here: {', '.join(sorted(known.values()))}"


def _known_keys(path: KeyPath) -> list[str]:
    """The keys of the model at `path`; a name or a number is a step into a dict or list."""
    model: type[BaseModel] = Settings
    for step in path:
        if step in model.model_fields:
            model = _model_in(model.model_fields[str(step)].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def _written(path: KeyPath) -> str:
    """As in JavaScript or jq, so that the dots of a registry's name are seen to be its own."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def _in_order(mistake: Mistake) -> tuple[bool, int, str]:
    place = mistake.place or Place("")
    return place.line is None, place.line or 0, place.name
