"""WWW-Authenticate, read (RFC 9110 §11.6.1): several headers, several challenges in each, quoted
commas, missing parameters. No I/O.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_CHALLENGE_CHARACTERS = 8192

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]*)')
# Negotiate and its like carry one bare value in place of parameters.
_TOKEN68 = r"[0-9A-Za-z._~+/-]+=*(?=\s*(?:,|$))"
_SCHEME = re.compile(rf"({_WORD})(?:\s+{_TOKEN68}|(?=\s|,|$))")
_SEPARATOR = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """`scheme` and the names of parameters are lower-case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """In the order sent. What cannot be read ends the header it stands in, without an error."""
    return [challenge for header in headers for challenge in _parse(header)]


def _parse(header: str) -> list[Challenge]:
    header = header[:MAX_CHALLENGE_CHARACTERS]
    challenges: list[Challenge] = []
    position = 0
    while position < len(header):
        if skipped := _SEPARATOR.match(header, position):
            position = skipped.end()
        elif challenges and (parameter := _PARAMETER.match(header, position)):
            challenges[-1].parameters[parameter[1].lower()] = _unquoted(parameter[2])
            position = parameter.end()
        elif scheme := _SCHEME.match(header, position):
            challenges.append(Challenge(scheme[1].lower()))
            position = scheme.end()
        else:
            break
    return challenges


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", r"\1", value[1:-1])
