"""The control socket's serving end: commands for a cache that is in use."""

import asyncio
import json
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from mirror import __version__
from mirror.control.listener import listening, remove
from mirror.control.wire import BEAT_SECONDS, PROTOCOL, VERSION_HEADER
from mirror.errors import MirrorError
from mirror.upkeep.keeper import Keeper
from mirror.upkeep.lines import Line, Lines, Refused

MAX_ARGUMENTS_BYTES = 64 * 1024
# For what was begun and has to be ended, such as a removal.
STEP_SECONDS = 5.0
# For answers that are only being written.
CLOSING_SECONDS = 1.0
ENDING = "the mirror is shutting down; what the command has done so far is done"
_HEADERS = {VERSION_HEADER: __version__}
_BEAT = b"\n"

_log = structlog.get_logger()


class ControlServer:
    """From `open` to `aclose`. A command whose asker hangs up ends, between two steps."""

    def __init__(self, keeper: Keeper, path: Path) -> None:
        self._keeper = keeper
        self._path = path
        self._runner: web.AppRunner | None = None
        self._running: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """A disk that takes no socket keeps nobody from serving: one line in the log says so."""
        try:
            listener = await asyncio.to_thread(listening, self._path)
        except OSError as error:
            _log.warning(
                "no control socket; mirror ls, rm, pin, gc and verify work only while no mirror "
                "serves",
                path=str(self._path),
                error=error.strerror or str(error),
            )
            return
        app = web.Application(client_max_size=MAX_ARGUMENTS_BYTES)
        app.router.add_post("/{protocol}/{command}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSING_SECONDS
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def aclose(self) -> None:
        """Commands under way end, and are told why."""
        if self._runner is None:
            return
        with suppress(OSError):
            await asyncio.to_thread(remove, self._path)
        tasks = list(self._running)
        for task in tasks:
            task.cancel(ENDING)
        if tasks:
            await asyncio.wait(tasks, timeout=STEP_SECONDS)
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["protocol"] != PROTOCOL:
            return _refusal(404, f"this mirror is of version {__version__}")
        try:
            arguments = await request.json()
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            return _refusal(400, "the arguments are a JSON object")
        try:
            lines = self._keeper.run(request.match_info["command"], arguments)
        except Refused as error:
            return _refusal(400, error.message)
        response = web.StreamResponse(headers=_HEADERS | {"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        task = asyncio.ensure_future(_answer(response, lines))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await _end_with_us(task)
        return response


async def _end_with_us(task: "asyncio.Task[None]") -> None:
    """Its asker may hang up, and the mirror may end."""
    try:
        await asyncio.wait([task])
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _answer(response: web.StreamResponse, lines: Lines) -> None:
    """Whatever happens: the last line says how it ended."""
    try:
        async with aclosing(lines):
            await _write_all(response, lines)
        return
    except ConnectionError:
        return
    except (Refused, MirrorError) as error:
        message = error.message
    except OSError as error:
        message = f"this mirror's disk fails: {error.strerror or error}"
    except asyncio.CancelledError as cancelled:
        if ENDING not in cancelled.args:
            raise
        message = ENDING
    except Exception:
        _log.exception("a command failed")
        message = "this mirror failed; its log says more"
    with suppress(ConnectionError):
        await response.write(_encoded({"error": {"message": message}}))


async def _write_all(response: web.StreamResponse, lines: Lines) -> None:
    """And a beat now and then, so that the other end knows that we are there."""
    while True:
        upcoming = asyncio.ensure_future(anext(lines, None))
        try:
            while not (await asyncio.wait([upcoming], timeout=BEAT_SECONDS))[0]:
                await response.write(_BEAT)
        finally:
            if not upcoming.done():
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)
        line = upcoming.result()
        if line is None:
            return
        await response.write(_encoded(line))


def _encoded(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=_HEADERS)
