"""Where settings come from: the YAML file with its `${VAR}`, `MIRROR_*` variables over it, and what
the environment tells all programs below it.
"""

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
_OF_ALL_PROGRAMS = {"http": "http_proxy", "https": "https_proxy", "none_for": "no_proxy"}
_MERGE_TAG = "tag:yaml.org,2002:merge"
_COLLECTION_TAGS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})

_QUOTE_IT = "put quotes around a value that starts with a special character such as @, * or %"
_SOMETHING_OPEN = "check the indentation, brackets and quotes on this line and above"
# By how the library's message begins. It is never repeated: what it quotes may be a password.
_NOT_YAML = {
    "found character '\\t'": "indent with spaces, not with tabs",
    "found character": _QUOTE_IT,
    "found undefined alias": f"this alias (*) has no anchor (&); {_QUOTE_IT}",
    "expected alphabetic or numeric character": _QUOTE_IT,
    "but found another document": "the file must hold a single document, without a `---` inside",
    "mapping values are not allowed": "a colon is not allowed here; check the indentation, or put "
    "quotes around a value that contains a colon and a space",
    "could not find expected ':'": "a key must be followed by a colon",
    "found unknown escape character": "within double quotes a backslash is written \\\\",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "expected the node content": "a value is missing, or a bracket is not closed",
}

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
        for depth, step in enumerate(path[:-1], 1):
            if not isinstance(values.get(step), dict):
                values[step] = {}
                self.places[path[:depth]] = Place(variable)
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
        source.mistakes.append(((), f"the character {chr(error.character)!a} is not allowed"))
    except (_TooMuch, RecursionError):
        source.mistakes.append(
            ((), f"more than {MAX_VALUES} values or {MAX_DEPTH} levels; no mirror needs so many")
        )
    else:
        if isinstance(values, dict | None):
            source.values = values or {}
        else:
            source.mistakes.append(((), "the file must be a mapping of settings, like `listen: …`"))
    return source


def _not_yaml(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    told = (sentence for start, sentence in _NOT_YAML.items() if problem.startswith(start))
    return f"this is not valid YAML: {next(told, _SOMETHING_OPEN)}"


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
            self._wrong(path, "a tag (!) is not supported here")
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
            return self._wrong(path, f"this value cannot be read; {_QUOTE_IT}")

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
                self._wrong((*path, key), "this key appears twice")
        return merged | values

    def _read_merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """`<<: *common`, or a list of such, of which the first counts most."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for each in reversed(sources):
            values = self.read(each, path)
            if not isinstance(values, dict):
                self._note_line(node, (*path, "<<"))
                self._wrong((*path, "<<"), "only a mapping can be merged")
                return {}
            merged |= values
        return merged

    def _expanded(self, text: str, path: KeyPath) -> str:
        def replace(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            name, default = match[1], match[2]
            if name is None:
                self._wrong(
                    path, "a variable is ${NAME} or ${NAME:-default}; for a plain ${ write $${"
                )
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
                    source.mistakes.append((path, _not_json(error)))


def underlay_proxies(source: Source, environment: Mapping[str, str]) -> None:
    """What the environment tells all programs, where nothing is said of this one's `proxies`. As
    in curl, lower case is heard first.
    """
    if "proxies" in source.values:
        return
    for key, name in _OF_ALL_PROGRAMS.items():
        for variable in (name, name.upper()):
            if text := environment.get(variable):
                source.replace(("proxies", key), variable, text)
                break


def _not_json(error: ValueError | RecursionError) -> str:
    where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
    return f"this starts like JSON, but is not valid{where}"


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
