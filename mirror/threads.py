"""Work in a thread whose asker is cancelled: who waits for it, and whose the files are that it has
open.
"""

import asyncio
import errno
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

# A third of the processor, where the event loop wants all of it.
NICENESS = 5

T = TypeVar("T")


class Closable(Protocol):
    def close(self) -> None: ...


F = TypeVar("F", bound=Closable)


def stand_back() -> None:
    """This thread has the processor where the event loop does not want it: while blobs are hashed,
    what is warm goes out as soon as it is asked for. Linux gives each thread a niceness of its own.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS  # less takes a privilege
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


async def in_thread(threads: Executor | None, work: Callable[..., T], *arguments: Any) -> T:
    """Over before this returns, also when cancelled: files get closed next. None: the threads that
    the event loop has for everybody.
    """
    future = asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        _forget(future)
        raise


async def while_wanted(
    threads: Executor, seconds: float, work: Callable[..., T], *arguments: Any
) -> T:
    """Left to itself when its asker is cancelled, and not even begun if it was not by then. Raises
    TimeoutError where no thread was free within `seconds`.
    """
    asked = threads.submit(work, *arguments)
    answer = asyncio.wrap_future(asked)
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(answer)
    except TimeoutError:
        if asked.cancel():
            raise
        return await answer
    finally:
        if not answer.cancel():
            _forget(answer)


async def in_daemon(room: asyncio.Semaphore, work: Callable[[], T]) -> T:
    """In a thread of its own, which takes up room until it ends, whoever has gone away by then. The
    end of the program does not wait for it: what it asks may never answer. Raises OSError where the
    system has no thread left.
    """
    await room.acquire()
    loop = asyncio.get_running_loop()
    answer = Future[T]()
    answer.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answer.set_result(work())
        except Exception as error:
            answer.set_exception(error)
        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(room.release)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:
        room.release()
        raise OSError(errno.EAGAIN, "no thread is left") from error
    return await asyncio.wrap_future(answer)


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Over before this returns, also when cancelled: its steps belong together."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        _forget(task)
        raise


async def opened(work: Callable[[], F | None]) -> F | None:
    """What `work` opens, in a thread; closed again if its asker is cancelled meanwhile."""
    opening = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unclaimed)
        raise


def _close_unclaimed(opening: "asyncio.Future[F | None]") -> None:
    """Closing the last name of a large file takes time."""
    if opening.cancelled() or opening.exception() is not None:
        return
    if (unclaimed := opening.result()) is not None:
        close_elsewhere(unclaimed)


def close_elsewhere(file: Closable) -> None:
    """In a thread, which nobody waits for; at once, if this is one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        file.close()
        return
    loop.run_in_executor(None, file.close).add_done_callback(_forget)


def _forget(work: "asyncio.Future[Any]") -> None:
    """Nobody is left to hear what went wrong."""
    if not work.cancelled():
        work.exception()
