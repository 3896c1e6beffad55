"""Where settings come from: the YAML file with its `${VAR}`, and `MIRROR_*` variables over it."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_FILE_BYTES = 1024 * 1024
# An alias stands for all that is below its anchor: a few lines of them can mean billions of values.
MAX_VALUES = 20_000
MAX_DEPTH = 20
ENVIRONMENT_PREFIX = "MIRROR_"
_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")
# MIRROR_CONFIG names the file itself; Kubernetes gives the others to each pod beside a Service that
# is called "mirror" or "mirror-something".
_NOT_SETTINGS = re.compile(
    r"MIRROR_(CONFIG|(\w+_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP).*)?))"
)
_MERGE_TAG = "tag:yaml.org,2002:merge"
_COLLECTION_TAGS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the file, or a variable of the environment."""

    name: str
    line: int | None = None

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}"


@dataclass
class Source:
    """Values, where each stands (for messages), and what was wrong in reading them."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    variables: dict[KeyPath, str] = field(default_factory=dict)
    mistakes: list[tuple[KeyPath, str]] = field(default_factory=list)

    def place_of(self, path: KeyPath) -> Place | None:
        """Of the value at `path`, or of the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path)

    def replace(self, path: tuple[str, ...], variable: str, value: Any) -> None:
        """A variable takes the place of whatever the file says there, its mistakes included."""

        def is_below(other: KeyPath) -> bool:
            return other[: len(path)] == path

        self.places = {at: place for at, place in self.places.items() if not is_below(at)}
        self.mistakes = [mistake for mistake in self.mistakes if not is_below(mistake[0])]
        self.places[path] = Place(variable)
        self.variables[path] = variable
        values = self.values
        for step in path[:-1]:
            if not isinstance(values.get(step), dict):
                values[step] = {}
            values = values[step]
        values[path[-1]] = value


def read_file(text: str, file_name: str, environment: Mapping[str, str]) -> Source:
    """The file's values with `${VAR}` replaced. Mistakes of syntax are in the result."""
    source = Source()
    source.places[()] = Place(file_name)
    reader = _Reader(file_name, environment, source)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = reader.read(root, ()) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        source.places[()] = Place(file_name, mark.line + 1 if mark else None)
        source.mistakes.append(((), _not_yaml(error)))
    except yaml.reader.ReaderError as error:
        source.places[()] = Place(file_name, text.count("\n", 0, error.position) + 1)
        source.mistakes.append(((), f"the character {chr(error.character)!a} cannot be here"))
    except (_TooMuch, RecursionError):
        source.mistakes.append(
            ((), f"more than {MAX_VALUES} values or {MAX_DEPTH} levels: these are no settings")
        )
    else:
        if isinstance(values, dict | None):
            source.values = values or {}
        else:
            source.mistakes.append(((), "the file must be a mapping of settings, like `listen: …`"))
    return source


def _not_yaml(error: yaml.MarkedYAMLError) -> str:
    told = ", ".join(part for part in (error.context, error.problem) if part)
    told = _QUOTED_TEXT.sub("'…'", told)
    hint = "; YAML is indented with spaces, not with tabs" if "\\t" in told else ""
    return f"this is not YAML: {told}{hint}"


_UNREADABLE = "this value cannot be read; text that begins with a sign goes between quotes"
# Names of YAML's own things stand in angle brackets; other text may be part of a password.
_QUOTED_TEXT = re.compile(r"'[^'<\\][^']+'")


class _TooMuch(Exception):
    """More than any configuration needs."""


class _Reader:
    """From YAML's nodes to values, noting the line of each."""

    def __init__(self, file_name: str, environment: Mapping[str, str], source: Source) -> None:
        self._file_name = file_name
        self._environment = environment
        self._source = source
        self._plain = yaml.constructor.SafeConstructor()
        self._values = 0
        self._depth = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        """Raises _TooMuch."""
        with self._one_level_down():
            value = self._read(node, path)
        self._note_line(node, path)
        return value

    @contextmanager
    def _one_level_down(self) -> Iterator[None]:
        self._values += 1
        self._depth += 1
        if self._values > MAX_VALUES or self._depth > MAX_DEPTH:
            raise _TooMuch
        yield
        self._depth -= 1

    def _read(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTION_TAGS:
            self._wrong(path, f"the tag {node.tag} is not understood here")
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(each, (*path, n)) for n, each in enumerate(node.value)]
        if "${" in node.value:
            return self._expanded(node.value, path)
        try:
            return self._plain.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError):
            # What the library says of it may quote the value, which may be a password.
            return self._wrong(path, _UNREADABLE)

    def _read_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                merged |= self._read_merged(value_node, path)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._note_line(key_node, (*path, "?"))
                self._wrong((*path, "?"), "a key must be plain text")
                continue
            key = key_node.value
            is_repeated = key in values
            values[key] = self.read(value_node, (*path, key))
            self._note_line(key_node, (*path, key))
            if is_repeated:
                self._wrong((*path, key), "this key stands here twice")
        return merged | values

    def _read_merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """`<<: *common`, or a list of such, of which the first counts most."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for each in reversed(sources):
            values = self.read(each, path)
            if not isinstance(values, dict):
                self._note_line(node, (*path, "<<"))
                self._wrong((*path, "<<"), "only a mapping can be merged in")
                return {}
            merged |= values
        return merged

    def _expanded(self, text: str, path: KeyPath) -> str:
        def replace(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            name, default = match[1], match[2]
            if name is None:
                self._wrong(path, "a variable is ${NAME} or ${NAME:-default}; $${ stands for ${")
                return ""
            value = self._environment.get(name, default)
            if value is None:
                hint = f"${{{name}:-…}} gives a default"
                self._wrong(path, f"the environment variable {name} is not set; {hint}")
            return value or ""

        return _VARIABLE.sub(replace, text)

    def _wrong(self, path: KeyPath, message: str) -> None:
        self._source.mistakes.append((path, message))

    def _note_line(self, node: yaml.Node, path: KeyPath) -> None:
        self._source.places[path] = Place(self._file_name, node.start_mark.line + 1)


def overlay_environment(source: Source, environment: Mapping[str, str], keys: set[str]) -> None:
    """Lays `MIRROR_LISTEN`, `MIRROR_STORAGE__PATH`, … over the values; `__` goes one level down.

    Values are taken as JSON where they are an object or a list, else as they are (`[::]:5000`).
    `keys` are the top-level settings, so that `MIRROR_STORAGE_PATH` is understood, too.
    """
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX) or _NOT_SETTINGS.fullmatch(variable):
            continue
        path = _path_of(variable.removeprefix(ENVIRONMENT_PREFIX), keys)
        text = environment[variable]
        source.replace(path, variable, text)
        if text[:1] in ("{", "["):
            try:
                source.replace(path, variable, json.loads(text))
            except (ValueError, RecursionError) as error:
                if text.startswith("{"):
                    source.mistakes.append((path, f"this begins like JSON, but is none: {error}"))


def variable_of(path: KeyPath) -> str:
    """The variable that sets what stands at `path`."""
    return ENVIRONMENT_PREFIX + "__".join(str(step) for step in path).upper()


def _path_of(name: str, keys: set[str]) -> tuple[str, ...]:
    parts = name.lower().split("__")
    if len(parts) == 1 and parts[0] not in keys:
        first, _, rest = parts[0].partition("_")
        if first in keys and rest:
            return first, rest
    return tuple(parts)
