"""Settings from their sources, or every mistake in them at once."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mirror.config.model import Settings
from mirror.config.sources import MAX_FILE_BYTES, Source, overlay_environment, read_file


@dataclass(frozen=True, slots=True)
class Mistake:
    """`path` is like `upstreams.docker.io.tag_ttl`; `place` a file and line, or a variable."""

    path: str
    place: str
    message: str

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.place, self.path) if part)
        return f"{where}: {self.message}" if where else self.message


class ConfigurationError(Exception):
    """All mistakes, in the order of the file."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


def load(file: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises ConfigurationError. Without a file: the embedded defaults, and the environment."""
    source = _read(file, environment)
    overlay_environment(source, environment, set(Settings.model_fields))
    mistakes = [
        Mistake(_dotted(path), source.place_of(path), message) for path, message in source.mistakes
    ]
    settings = None
    try:
        settings = Settings.model_validate(source.values)
    except ValidationError as error:
        told = {mistake.path for mistake in mistakes}
        found = [_mistake(each, source) for each in error.errors(include_url=False)]
        mistakes += [mistake for mistake in found if mistake.path not in told]
    if mistakes or settings is None:
        raise ConfigurationError(sorted(mistakes, key=_in_order_of_the_file))
    return settings


def _read(file: Path | None, environment: Mapping[str, str]) -> Source:
    if file is None:
        return Source()
    try:
        content = file.read_bytes()[: MAX_FILE_BYTES + 1]
        if len(content) > MAX_FILE_BYTES:
            raise ConfigurationError(
                [Mistake("", str(file), f"larger than {MAX_FILE_BYTES} bytes")]
            )
        return read_file(content.decode(), str(file), environment)
    except OSError as error:
        message = f"cannot be read: {error.strerror}; --config names the file"
        raise ConfigurationError([Mistake("", str(file), message)]) from error
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text at byte {error.start}"
        raise ConfigurationError([Mistake("", str(file), message)]) from error


def _mistake(error: ErrorDetails, source: Source) -> Mistake:
    path = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        message = _unknown_key(path)
    elif error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
    elif error["type"] == "missing":
        message = "this is required"
    else:
        message = error["msg"][0].lower() + error["msg"][1:]
    return Mistake(_dotted(path), source.place_of(path), message)


def _unknown_key(path: tuple[int | str, ...]) -> str:
    known = _known_keys(path[:-1])
    nearest = difflib.get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(sorted(known))}"
    return f"unknown key; {hint}"


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
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


def _dotted(path: tuple[int | str, ...]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _in_order_of_the_file(mistake: Mistake) -> tuple[str, int, str]:
    name, _, line = mistake.place.rpartition(":")
    return (name, int(line), mistake.path) if line.isdigit() else (mistake.place, 0, mistake.path)
