"""One answer to each request, whatever happens on its way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from aiohttp import web

from mirror.errors import MirrorError
from mirror.metrics import Cache
from mirror.names import Digest
from mirror.proxy.absences import RememberedAbsence
from mirror.store.handles import StoredBlob
from mirror.web.connection import FAILED
from mirror.web.replies import error_reply
from mirror.web.request import Facts

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_log = structlog.get_logger()


class Answers(Protocol):
    """Who answers what clients ask of the registry API."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Raises MirrorError."""

    def find_open(self, digest: Digest) -> StoredBlob | None:
        """A stored blob that is open already, and still what it was; the caller closes it."""

    def note_given(self, digest: Digest, client: str) -> None:
        """The whole of a stored blob has gone to this client."""


async def answer(request: web.BaseRequest, facts: Facts, handler: Handler) -> web.StreamResponse:
    """The handler's, or the error's that it raises, which the facts then tell."""
    try:
        return await handler(request)
    except MirrorError as error:
        if isinstance(error, RememberedAbsence):
            facts.cache = Cache.NEGATIVE
        facts.error = error.message
        return error_reply(error, facts.address)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        _log.exception("request failed", path=request.path[:1000])
        facts.error = "internal error"
        if facts.status is not None and request.transport is not None:
            # Headers are out: another answer would be taken for the body's rest.
            facts.cut_short = True
            request.transport.close()
        return error_reply(MirrorError(FAILED), facts.address)
