"""What a command answers, line by line: things, how far it is, and in the end what came of it.

    {"item": {…}}       one of many: an image, an orphan, a damaged blob
    {"progress": {…}}   of long commands
    {"result": {…}}     the last line

Sizes are in bytes, times in wall-clock seconds, and names are text from outside.
"""

from collections.abc import AsyncGenerator
from typing import Any

Line = dict[str, dict[str, Any]]
Lines = AsyncGenerator[Line, None]


class Refused(Exception):
    """The command does not do it; the message says why, and what can be done."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def item(**facts: Any) -> Line:
    return {"item": facts}


def progress(**facts: Any) -> Line:
    return {"progress": facts}


def result(**facts: Any) -> Line:
    return {"result": facts}
