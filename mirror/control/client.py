"""The control socket's asking end: a command for the mirror that serves from a folder."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp

from mirror import __version__
from mirror.control.wire import PROTOCOL, VERSION_HEADER, address_of
from mirror.upkeep.lines import Line, Lines, Refused

CONNECT_SECONDS = 5.0
# Several beats (see wire.py).
SILENCE_SECONDS = 30.0
MAX_LINE_BYTES = 4 * 1024 * 1024
_HOST = "http://mirror"


class NobodyThere(Exception):
    """No mirror listens at the folder's control socket."""


async def ask(path: Path, command: str, arguments: Mapping[str, Any]) -> Lines:
    """The command's lines. `path` is the socket's. Raises NobodyThere, Refused."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
    )
    with ExitStack() as opened:
        try:
            address = await asyncio.to_thread(opened.enter_context, address_of(path))
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(address),
                    timeout=timeout,
                    read_bufsize=MAX_LINE_BYTES,
                ) as session,
                session.post(f"{_HOST}/{PROTOCOL}/{command}", json=dict(arguments)) as response,
            ):
                await _check(response)
                ended = False
                async for line in _lines_of(response):
                    ended = "result" in line
                    yield line
                if not ended:
                    raise Refused("the mirror ended before the command did; run it once more")
        except aiohttp.ClientConnectorError as error:
            raise _unconnected(error.os_error, path) from None
        except TimeoutError:
            raise Refused(
                f"the mirror that serves from {path.parent} does not answer: its process may be "
                "stopped, or too busy; its log may say more, else restart it"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            raise Refused("the mirror ended before the command did; run it once more") from None
        except OSError as error:
            raise _unconnected(error, path) from None


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises Refused."""
    if response.status == 200:
        return
    if response.status == 404:
        version = response.headers.get(VERSION_HEADER, "another one")
        raise Refused(
            f"the mirror that runs is of version {version} and does not understand this command, "
            f"which is of {__version__}: use the same, or restart the mirror"
        )
    raise Refused(_message_of(await response.text()))


async def _lines_of(response: aiohttp.ClientResponse) -> AsyncIterator[Line]:
    """Without beats. Raises Refused for an error, or what is no line."""
    async for data in response.content:
        if not data.strip():
            continue
        try:
            line = json.loads(data)
        except ValueError:
            line = None
        if not isinstance(line, dict) or "error" in line:
            raise Refused(_message_of(data.decode(errors="replace")))
        yield line


def _message_of(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "the mirror's answer makes no sense to this version of the command"


def _unconnected(reason: OSError, path: Path) -> Exception:
    if isinstance(reason, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return NobodyThere()
    if isinstance(reason, PermissionError):
        return Refused(
            f"{path}: {reason.strerror}; run the command as the user that runs the mirror"
        )
    return Refused(f"{path}: {reason.strerror or reason}")
