"""A blob from the owner to one client of a front process, also when the owner ends on the way."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import ClientResponse, HttpVersion11, hdrs, web
from multidict import CIMultiDict

from mirror.errors import StorageFailed, UpstreamBroken
from mirror.names import Digest
from mirror.web.request import FACTS, FilePart
from mirror.workers.legs import Leg, send_leg
from mirror.workers.owner import OwnerFailed, OwnerLost

# The next leg is asked for until nothing has come for this long.
GO_ON_SECONDS = 60.0

CheckEnded = Callable[[ClientResponse], Awaitable[None]]


class NextLeg(Protocol):
    def __call__(self, wanted: str, *, by_file: bool) -> Coroutine[Any, Any, Leg]:
        """Of this range. Raises OwnerLost, OwnerFailed."""


class Sending:
    """`check_ended` is that of Owner; `note_given` is told of a stored blob that went out as a
    whole, and to whom.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        first: Leg,
        next_leg: NextLeg,
        check_ended: CheckEnded,
        note_given: Callable[[Digest, str], None],
    ) -> None:
        self._request = request
        self._facts = request[FACTS]
        self._first = self._leg = first
        self._next_leg = next_leg
        self._check_ended = check_ended
        self._note_given = note_given
        self._position, self._end = first.span()
        self._waits_for_digest = first.told is None or first.told.completes
        self._is_by_file = first.blob is not None
        self._is_by_sendfile = True
        self._moved_at = time.monotonic()

    async def send(self, headers: CIMultiDict[str]) -> web.StreamResponse:
        """Once headers are out the connection's early end tells that something went wrong.

        Raises MirrorError before that.
        """
        headers.popall(hdrs.CONTENT_LENGTH, None)
        response = web.StreamResponse(status=self._first.answer.status, headers=headers)
        try:
            self._describe_length(response)
            self._facts.status = response.status
            await response.prepare(self._request)
            await self._send_legs(response)
        except UpstreamBroken:
            raise
        except (OwnerLost, OwnerFailed, StorageFailed, OSError, TimeoutError) as error:
            self._cut_short(str(error))
        except asyncio.CancelledError:
            self._cut_short("the client has hung up, or this mirror is shutting down")
            raise
        else:
            self._note_file()
        finally:
            self._leg.close()
        return response

    def _describe_length(self, response: web.StreamResponse) -> None:
        if self._end is not None:
            response.content_length = self._end - self._position
        elif self._request.version < HttpVersion11:
            raise UpstreamBroken(self._facts.upstream, "tells no size; HTTP/1.0 needs one")
        else:
            response.enable_chunked_encoding()

    async def _send_legs(self, response: web.StreamResponse) -> None:
        while True:
            try:
                await send_leg(
                    self._request, response, self._leg, self._position, self._end, self._note_sent
                )
            except OwnerLost:
                if self._leg.is_in_parts:
                    raise
                if self._leg.blob is None:
                    await self._check_has_ended()
            except StorageFailed:
                if self._leg.blob is None:
                    raise
                self._is_by_file = False
            else:
                if self._end is None or self._position == self._end:
                    return
                raise OwnerFailed("the owner's answer ended early")
            await self._go_on()

    async def _check_has_ended(self) -> None:
        """Else it cut the bytes short with reason, which they cannot tell. Raises OwnerFailed."""
        with suppress(OwnerLost):
            await self._check_ended(self._leg.answer)

    async def _go_on(self) -> None:
        """Raises OwnerFailed, and OwnerLost where it takes too long."""
        self._leg.close()
        while True:
            try:
                self._leg = await self._next_leg(self._wanted(), by_file=self._is_by_file)
            except OwnerLost:
                if time.monotonic() - self._moved_at > GO_ON_SECONDS:
                    raise
            else:
                break
        if self._leg.span()[0] != self._position:
            raise OwnerFailed("the owner's answer begins elsewhere")

    def _wanted(self) -> str:
        """What leads to a blob's end waits for its digest, and so has to be asked for as such."""
        last = "" if self._waits_for_digest or self._end is None else self._end - 1
        return f"bytes={self._position}-{last}"

    def _note_sent(self, sent_bytes: int, by_sendfile: bool) -> None:
        self._position += sent_bytes
        self._facts.sent_bytes += sent_bytes
        self._is_by_sendfile = self._is_by_sendfile and by_sendfile
        self._moved_at = time.monotonic()

    def _note_file(self) -> None:
        told = self._first.told
        if told is None or not told.is_stored or told.end is None or not self._is_by_sendfile:
            return
        digest = Digest.parse(told.digest)
        count = told.end - told.start
        self._facts.file = FilePart(digest, told.start, count, is_whole=told.is_whole)
        if told.is_whole:
            self._note_given(digest, self._request.remote or "")

    def _cut_short(self, error: str) -> None:
        """By FIN, so that containerd resumes."""
        self._facts.cut_short = True
        self._facts.error = error
        if self._request.transport is not None:
            self._request.transport.close()
