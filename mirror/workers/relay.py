"""What a front process does not know by itself, it asks the owner."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import structlog
from aiohttp import HttpVersion11, hdrs, web
from cachetools import LRUCache
from multidict import CIMultiDict

from mirror.addressing import Kind
from mirror.errors import UpstreamBroken
from mirror.names import Digest
from mirror.store.handles import StoredBlob
from mirror.web.request import FACTS, Facts
from mirror.web.tally import Tally
from mirror.web.told import BY_FILE, OLD_CLIENT, STREAMED, TOLD, ToldFile, hear
from mirror.workers.files import Files
from mirror.workers.legs import Leg
from mirror.workers.owner import Owner, OwnerFailed, OwnerLost, unanswered, whole
from mirror.workers.sending import Sending

# From one request to an answer's headers, however often the owner ends meanwhile.
ANSWER_SECONDS = 28.0
# What the owner looks at; anything else a client sends ends here.
_ASKED = (hdrs.ACCEPT, hdrs.IF_NONE_MATCH, hdrs.IF_RANGE, hdrs.RANGE, "Priority")
# Of one connection only (RFC 9110 §7.6.1), made anew for the next one, or between us.
_NOT_PASSED = frozenset(
    {"connection", "date", "keep-alive", "transfer-encoding", TOLD.lower(), STREAMED.lower()}
)
_CONTENT = frozenset({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT})

_log = structlog.get_logger()

T = TypeVar("T")


class Relay:
    """Answers (see web/answering.py) in the owner's words."""

    def __init__(self, owner: Owner, files: Files, tally: Tally, shared_bytes: int) -> None:
        """`shared_bytes` is what the bodies that several answers share may take of memory."""
        self._shared: LRUCache[str, bytes] = LRUCache(shared_bytes, getsizeof=len)
        self._owner = owner
        self._files = files
        self._tally = tally

    def find_open(self, digest: Digest) -> StoredBlob | None:
        return self._files.find_open(digest)

    def note_given(self, digest: Digest, client: str) -> None:
        self._tally.given(digest, client)

    async def page(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the owner tells of the mirror itself. Raises MirrorError."""
        return await _until_answered(lambda: self._page(request))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Raises MirrorError."""
        answer = await _until_answered(lambda: self._answer(request))
        facts = request[FACTS]
        is_read = request.method == hdrs.METH_GET and facts.address.kind is Kind.BLOB
        if facts.error is None and (is_read or facts.address.kind is Kind.MANIFEST):
            facts.first_byte(self._tally)
        if isinstance(answer, web.Response):
            return answer
        next_leg = partial(self._next_leg, request)
        sending = Sending(request, answer, next_leg, self._owner.check_ended, self.note_given)
        return await sending.send(_passed(answer.answer.headers))

    async def _page(self, request: web.BaseRequest) -> web.Response:
        answer = await self._owner.ask(request.method, _target(request), {})
        return await self._whole(request, answer)

    async def _answer(self, request: web.BaseRequest) -> web.Response | Leg:
        """A whole answer, or a blob's first leg. Raises MirrorError, OwnerLost."""
        facts = request[FACTS]
        answer, told = await self._ask(request, _asked(request), facts)
        if told is not None:
            leg = await self._with_file(answer, told)
            if leg is not None:
                return leg
            answer, _ = await self._ask(request, _asked(request, by_file=False), facts)
        if STREAMED in answer.headers:
            return Leg(answer, None, None)
        return await self._whole(request, answer)

    async def _next_leg(self, request: web.BaseRequest, wanted: str, *, by_file: bool) -> Leg:
        """This range of the same blob. Raises OwnerLost, OwnerFailed."""
        headers = _asked(request, by_file=by_file)
        for name in (hdrs.IF_RANGE, hdrs.IF_NONE_MATCH):
            headers.popall(name, None)
        headers[hdrs.RANGE] = wanted
        facts = Facts()
        answer, told = await self._ask(request, headers, facts)
        if answer.status not in _CONTENT:
            answer.close()
            raise OwnerFailed(facts.error or f"status {answer.status}")
        if told is None:
            return Leg(answer, None, None)
        leg = await self._with_file(answer, told)
        return leg or await self._next_leg(request, wanted, by_file=False)

    async def _ask(
        self, request: web.BaseRequest, headers: Mapping[str, str], facts: Facts
    ) -> tuple[aiohttp.ClientResponse, ToldFile | None]:
        answer = await self._owner.ask(request.method, _target(request), headers)
        return answer, hear(answer.headers[TOLD], facts)

    async def _with_file(self, answer: aiohttp.ClientResponse, told: ToldFile) -> Leg | None:
        """None: it cannot be opened here; the answer is closed."""
        blob = None
        try:
            blob = await self._files.open(told)
        except OSError as error:
            _log.error("a blob cannot be opened", digest=told.digest, error=error.strerror)
        finally:
            if blob is None:
                answer.close()
        return None if blob is None else Leg(answer, told, blob)

    async def _whole(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse
    ) -> web.Response:
        """What waits for slow clients is held once. Raises OwnerLost, and UpstreamBroken where the
        owner cut the bytes short with reason.
        """
        headers = _passed(answer.headers)
        try:
            body = await whole(answer)
        except OwnerLost:
            await self._check_ended(request, answer)
            raise
        if request.method == hdrs.METH_HEAD or answer.status == HTTPStatus.NOT_MODIFIED:
            return web.Response(status=answer.status, headers=headers)
        headers.popall(hdrs.CONTENT_LENGTH, None)
        tag = headers.get(hdrs.ETAG)
        if tag is not None and answer.status == HTTPStatus.OK and len(body) <= self._shared.maxsize:
            body = self._shared.setdefault(tag, body)
        return web.Response(status=answer.status, headers=headers, body=body)

    async def _check_ended(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> None:
        """Raises OwnerLost, UpstreamBroken."""
        try:
            await self._owner.check_ended(answer)
        except OwnerFailed as failed:
            raise UpstreamBroken(request[FACTS].upstream, str(failed)) from None


async def _until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Also where the owner ends meanwhile. Raises MirrorError."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                try:
                    return await ask()
                except OwnerLost as lost:
                    _log.debug("the owner is asked again", reason=str(lost))
    except TimeoutError:
        raise unanswered() from None


def _asked(request: web.BaseRequest, *, by_file: bool = True) -> CIMultiDict[str]:
    """The client's headers as the owner gets them."""
    headers = CIMultiDict(
        (name, _as_unicode(value)) for name in _ASKED for value in request.headers.getall(name, ())
    )
    if by_file and request.method == hdrs.METH_GET:
        headers[BY_FILE] = "1"
    if request.version < HttpVersion11:
        headers[OLD_CLIENT] = "1"
    return headers


def _as_unicode(value: str) -> str:
    """What is none stays unfit, since it would be left out where it is written again."""
    return value.encode(errors="surrogateescape").decode(errors="replace")


def _passed(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The owner's headers as the client gets them."""
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in _NOT_PASSED
    )


def _target(request: web.BaseRequest) -> str:
    """As the client wrote it, but for a host before the path."""
    raw = request.raw_path
    return raw if raw.startswith("/") else request.rel_url.raw_path_qs or "/"
