"""Where settings come from: the YAML file with its `${VAR}`, and `MIRROR_*` variables over it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_FILE_BYTES = 1024 * 1024
ENVIRONMENT_PREFIX = "MIRROR_"
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
# MIRROR_CONFIG names the file itself; Kubernetes gives the others to each pod beside a Service that
# is called "mirror".
_NOT_SETTINGS = re.compile(
    r"MIRROR_(CONFIG|SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP).*)?)"
)

Path = tuple[str | int, ...]


@dataclass
class Source:
    """Values, where each stands (for messages), and what was wrong in reading them."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    mistakes: list[tuple[Path, str]] = field(default_factory=list)

    def place_of(self, path: Path) -> str:
        """Of the value at `path`, or of the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def read_file(text: str, file_name: str, environment: Mapping[str, str]) -> Source:
    """The file's values with `${VAR}` replaced. Mistakes of syntax are in the result."""
    source = Source()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        source.places[()] = f"{file_name}:{mark.line + 1}" if mark else file_name
        source.mistakes.append(((), f"this is not YAML: {error.problem or error.context}"))
        return source
    except yaml.YAMLError as error:
        source.mistakes.append(((), f"this is not YAML: {error}"))
        return source
    if root is None:
        return source
    values = _Reader(file_name, environment, source).read(root, ())
    if isinstance(values, dict):
        source.values = values
    else:
        source.mistakes.append(((), "the file must be a mapping of settings, like `listen: …`"))
    return source


class _Reader:
    """From YAML's nodes to values, noting the line of each."""

    def __init__(self, file_name: str, environment: Mapping[str, str], source: Source) -> None:
        self._file_name = file_name
        self._environment = environment
        self._source = source
        self._plain = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._source.places[path] = f"{self._file_name}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(each, (*path, n)) for n, each in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and "${" in node.value:
            return self._expanded(node.value, path)
        return self._constructed(node, path)

    def _constructed(self, node: yaml.Node, path: Path) -> Any:
        try:
            return self._plain.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self._source.mistakes.append((path, f"this value cannot be read: {error}"))
            return None

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in values:
                self._source.mistakes.append(((*path, key), "this key stands here twice"))
            values[key] = self.read(value_node, (*path, key))
            self._source.places[(*path, key)] = f"{self._file_name}:{key_node.start_mark.line + 1}"
        return values

    def _expanded(self, text: str, path: Path) -> str:
        def replace(match: re.Match[str]) -> str:
            name, default = match[1], match[2]
            if name is None:
                return "${"
            value = self._environment.get(name, default)
            if value is None:
                hint = f"`${{{name}:-…}}` gives a default"
                self._source.mistakes.append(
                    (path, f"the environment variable {name} is not set; {hint}")
                )
            return value or ""

        return _VARIABLE.sub(replace, text)


def overlay_environment(source: Source, environment: Mapping[str, str], keys: set[str]) -> None:
    """Lays `MIRROR_LISTEN`, `MIRROR_STORAGE__PATH`, … over the values; `__` goes one level down.

    Values are taken as they are, or as JSON where they begin like an object or list. `keys` are
    the top-level settings, so that `MIRROR_STORAGE_PATH` is understood, too.
    """
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX) or _NOT_SETTINGS.fullmatch(variable):
            continue
        path = _path_of(variable.removeprefix(ENVIRONMENT_PREFIX), keys)
        source.places[path] = variable
        _lay(source, path, _parsed(environment[variable]))


def _path_of(name: str, keys: set[str]) -> tuple[str, ...]:
    parts = name.lower().split("__")
    if len(parts) == 1 and parts[0] not in keys:
        first, _, rest = parts[0].partition("_")
        if first in keys and rest:
            return first, rest
    return tuple(parts)


def _parsed(text: str) -> Any:
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _lay(source: Source, path: tuple[str, ...], value: Any) -> None:
    values = source.values
    for step in path[:-1]:
        inner = values.setdefault(step, {})
        if not isinstance(inner, dict):
            inner = values[step] = {}
        values = inner
    values[path[-1]] = value
