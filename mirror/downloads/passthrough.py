"""A blob straight from its upstream to one client, for when this mirror's disk takes nothing, or
does not give back what it took. Nobody shares it and nothing is kept; what is promised of a whole
blob holds all the same.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from mirror.downloads.arrival import HELD_BACK_BYTES
from mirror.downloads.distrust import Distrust
from mirror.downloads.tries import Tries
from mirror.errors import UpstreamBroken, UpstreamFailing, WrongBytes
from mirror.names import Digest, Repository
from mirror.upstream.client import ENDED_EARLY, MAX_UNTOLD_BYTES, UpstreamClient


class PassThrough:
    def __init__(
        self, client: UpstreamClient, repository: Repository, digest: Digest, distrust: Distrust
    ) -> None:
        self._client = client
        self._repository = repository
        self._digest = digest
        self._distrust = distrust
        self._first_attempt = 0
        # While nothing was promised to the client, a refusal is told, and not asked for again.
        self._is_promised = True
        self.size_bytes: int | None = None

    async def open(self) -> None:
        """Asks for the size, and so whether the repository holds it. Raises UpstreamError."""
        self.size_bytes = await self._client.head_blob(self._repository.name, self._digest)

    def expect(self, size_bytes: int) -> None:
        """What the client was promised: nothing else is the blob."""
        self.size_bytes = size_bytes

    @asynccontextmanager
    async def begun(
        self, start: int, end: int | None, *, completes: bool
    ) -> AsyncIterator[AsyncGenerator[bytes | memoryview, None]]:
        """`chunks`, once the upstream has answered. Raises UpstreamError."""
        self._is_promised = False
        async with aclosing(self.chunks(start, end, completes=completes)) as chunks:
            await anext(chunks, None)  # the empty one
            self._is_promised = True
            yield chunks

    async def chunks(
        self, start: int, end: int | None, *, completes: bool
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """[start, end), or to the blob's end. Each chunk is good until the next is asked for; an
        empty one comes first.

        `completes`: the blob is fetched and hashed from its start, and its end waits for that.
        Raises UpstreamError. After WrongBytes, the next client's begin with another endpoint.
        """
        self._first_attempt = self._distrust.first_attempt(self._client.name, self._digest)
        pieces = self._hashed(start, end) if completes else self._fetched(start, end)
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    yield piece
            except WrongBytes:
                self._distrust.note(self._client.name, self._digest, self._first_attempt)
                raise

    async def _hashed(
        self, start: int, end: int | None
    ) -> AsyncGenerator[bytes | memoryview, None]:
        position = 0
        async with aclosing(self._all_but_an_unproven_end()) as pieces:
            async for piece in pieces:
                wanted = piece[max(0, start - position) :]
                position += len(piece)
                if end is not None and position >= end:
                    yield wanted[: max(0, len(wanted) - (position - end))]
                    return
                yield wanted

    async def _all_but_an_unproven_end(self) -> AsyncGenerator[bytes | memoryview, None]:
        """The blob; its last bytes once the whole has been hashed."""
        seen = hashlib.new(self._digest.algorithm)
        kept = b""
        async with aclosing(self._fetched(0, None)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(seen.update, chunk)
                if len(chunk) < HELD_BACK_BYTES:
                    kept += chunk
                    yield kept[:-HELD_BACK_BYTES]
                    kept = kept[-HELD_BACK_BYTES:]
                else:
                    yield kept
                    yield chunk[:-HELD_BACK_BYTES]
                    kept = bytes(chunk[-HELD_BACK_BYTES:])
        if seen.hexdigest() != self._digest.hex:
            raise WrongBytes(self._client.name, f"sent bytes that are not {self._digest}")
        yield kept

    async def _fetched(
        self, start: int, end: int | None
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """Goes on after a break where it was; wrong bytes are final."""
        end = self.size_bytes if end is None else end
        position, tries = start, Tries()
        while end is None or position < end:
            before = position
            try:
                async with aclosing(self._fetched_once(position, end, tries.idle)) as chunks:
                    async for chunk in chunks:
                        position += len(chunk)
                        if position > MAX_UNTOLD_BYTES and self.size_bytes is None:
                            raise WrongBytes(self._client.name, "sends a blob without end")
                        yield chunk
                if end is not None and position < end:
                    raise UpstreamBroken(self._client.name, ENDED_EARLY)
                return
            except WrongBytes:
                raise
            except UpstreamFailing:
                if not self._is_promised or not tries.note(progress=position > before):
                    raise
                await tries.pause()

    async def _fetched_once(
        self, start: int, end: int | None, attempt: int
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """What one answer brings of [start, end), skipping what comes before. After `attempt` tries
        that brought nothing another endpoint is asked first.
        """
        name = self._repository.name
        attempt += self._first_attempt
        asking = self._client.get_blob(name, self._digest, start, end, attempt=attempt)
        async with asking as answer:
            answer.check_begins_at(start)
            is_known = self.size_bytes is not None and answer.size_bytes is not None
            if is_known and answer.size_bytes != self.size_bytes:
                raise WrongBytes(self._client.name, f"has another size for {self._digest}")
            self._is_promised = True
            yield b""
            position = answer.start
            async with aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    wanted = chunk[max(0, start - position) :]
                    position += len(chunk)
                    if end is not None and position > end:
                        yield wanted[: len(wanted) - (position - end)]
                        return
                    yield wanted
