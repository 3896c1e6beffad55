"""Gives answers again: from memory at once, from a file by sendfile as fast as the client takes
it.
"""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress

from mirror.names import Digest
from mirror.store.handles import StoredBlob
from mirror.web.journal import Journal
from mirror.web.repeats import Repeat, Repeats
from mirror.web.request import FilePart
from mirror.web.sendfile import send_file

# For a client that takes what it is sent, however slowly.
SEND_SECONDS = 1800

FindOpen = Callable[[Digest], StoredBlob | None]
NoteGiven = Callable[[Digest, str], None]


class Replay:
    """`find_open` gives a stored blob that is open already; `note_given` is told of each that a
    client was given whole. `running` holds the answers that are under way.
    """

    def __init__(
        self,
        repeats: Repeats,
        journal: Journal,
        find_open: FindOpen,
        note_given: NoteGiven,
        running: set[asyncio.Task[object]],
    ) -> None:
        self.repeats = repeats
        self._journal = journal
        self._find_open = find_open
        self._note_given = note_given
        self._running = running

    def answer(
        self, head: bytes, transport: asyncio.Transport, client: str
    ) -> asyncio.Task[None] | bool:
        """Whether the request was answered; a task where the answer is still on its way."""
        started_at = time.monotonic()
        repeat = self.repeats.find(head, started_at)
        if repeat is None:
            return False
        if (part := repeat.given.facts.file) is not None:
            return self._send_file(repeat, part, transport, client)
        transport.write(repeat.written())
        self._journal.record_repeat(repeat.given, client, time.monotonic() - started_at)
        return True

    def _send_file(
        self, repeat: Repeat, part: FilePart, transport: asyncio.Transport, client: str
    ) -> asyncio.Task[None] | bool:
        blob = self._find_open(part.digest)
        if blob is None:
            return False
        answer = _FileAnswer(blob, part, transport)
        answer.send_at_once(repeat.written())
        if answer.sent_bytes == part.count:
            self._end(answer, repeat, client)
            return True
        task = asyncio.create_task(answer.send_rest())  # noqa: TID251 - the server waits for it
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: self._end(answer, repeat, client))
        return task

    def _end(self, answer: "_FileAnswer", repeat: Repeat, client: str) -> None:
        answer.blob.close()
        if answer.sent_bytes < answer.part.count:
            facts = repeat.cut_short(answer.started_at, answer.sent_bytes, answer.error)
            self._journal.record_cut_repeat(facts, repeat.given.method, client)
            return
        if answer.part.is_whole:
            self._note_given(answer.part.digest, client)
        seconds = time.monotonic() - answer.started_at
        self._journal.record_repeat(repeat.given, client, seconds)


class _FileAnswer:
    """One answer with its body on its way from a file; `sent_bytes` of the body are gone, `error`
    says why the rest is not, once it has ended.
    """

    def __init__(self, blob: StoredBlob, part: FilePart, transport: asyncio.Transport) -> None:
        self.blob = blob
        self.part = part
        self.sent_bytes = 0
        self.error = "the client has hung up, or this mirror is shutting down"
        self.started_at = time.monotonic()
        self._transport = transport

    def send_at_once(self, head: bytes) -> None:
        """The head, and what of the body the connection has room for now."""
        self._transport.write(head)
        if self._transport.get_write_buffer_size():
            return
        out = self._transport.get_extra_info("socket").fileno()
        file, part = self.blob.file.fileno(), self.part
        with suppress(OSError):  # no room, or what `send_rest` will meet as well
            self.sent_bytes = os.sendfile(out, file, part.start, part.count)

    async def send_rest(self) -> None:
        """Ends the connection where it cannot be sent."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                while self.sent_bytes < self.part.count:
                    await self._send_more()
        except (OSError, asyncio.SendfileNotAvailableError) as error:
            await self._doubt_if_unreadable()
            self._cut_short(repr(error))
        except asyncio.CancelledError:
            self._transport.close()
            raise

    async def _send_more(self) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client has hung up")
        start, count = self.part.start + self.sent_bytes, self.part.count
        rest = count - self.sent_bytes
        sent = await send_file(self._transport, self.blob.file, start, rest)
        if not sent:
            self.blob.doubt()
            raise OSError(errno.EIO, "a blob's file is shorter than it was")
        self.sent_bytes += sent

    async def _doubt_if_unreadable(self) -> None:
        """asyncio does not tell a client that has gone from a disk that fails."""
        file, position = self.blob.file.fileno(), self.part.start + self.sent_bytes
        try:
            await asyncio.to_thread(os.pread, file, 1, position)
        except OSError:
            self.blob.doubt()

    def _cut_short(self, error: str) -> None:
        self.error = error
        self._transport.close()
