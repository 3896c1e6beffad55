"""Which endpoints are left alone for a moment, so that a dead one costs its time-out once and not
with every request. No I/O.

An endpoint has a circuit for each class of request: where blobs fail, manifests may be fine. It is
closed while all is well. Open, the endpoint is passed over; after a while one request may try it
(half-open), and by how that ends the circuit closes or stays open for longer.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import TracebackType
from typing import Self

from mirror.errors import UpstreamError

FIRST_OPEN_SECONDS = 1.0
MAX_OPEN_SECONDS = 10.0
# The time open is drawn from this share of it to the whole, so that mirrors do not all come back to
# a registry in the same moment.
LEAST_SHARE = 0.75
# Bad answers in a row. A registry that answers 500 for one blob is not down.
MAX_BAD_ANSWERS = 5
_NOT_IMPLEMENTED = 501  # says that HEAD is not offered, and nothing about the server's health


class RequestClass(StrEnum):
    CONTROL = "control"  # manifests and lists
    BLOBS = "blobs"
    TOKENS = "tokens"


class Failure(Enum):
    NO_CONNECTION = "no connection"  # refused, no route, DNS, TLS, connect time-out
    NO_ANSWER = "no answer"  # a connection, and then silence or a hang-up
    BAD_ANSWER = "bad answer"  # 5xx, or not HTTP


@dataclass(frozen=True, slots=True)
class _Open:
    """Why, until when, and for how long it was meant before the dice. Of the error no more than its
    words: its traceback would keep a request's frames alive.
    """

    failure: Failure
    error_type: type[UpstreamError]
    message: str
    ends_at: float
    planned_seconds: float


# Told of each opening, with its reason, and of each closing, with None.
OnChange = Callable[[str | None], None]


class Circuit:
    def __init__(
        self,
        on_change: OnChange = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        random_share: Callable[[], float] = lambda: random.uniform(LEAST_SHARE, 1),  # noqa: S311
    ) -> None:
        self._on_change = on_change
        self._clock = clock
        self._random_share = random_share
        self._open: _Open | None = None
        self._probe: Trial | None = None
        self._bad_answers = 0

    @property
    def is_closed(self) -> bool:
        """All is well."""
        return self._open is None

    def enter(self) -> "Trial | None":
        """For one request, as a context; None where the endpoint is to be left alone."""
        if self._open is None:
            return Trial(self)
        if self._probe is not None or self._clock() < self._open.ends_at:
            return None
        self._probe = Trial(self)
        return self._probe

    def insist(self) -> "Trial":
        """For a request that has nowhere else to go. Its failure does not keep the circuit open for
        longer.
        """
        return Trial(self)

    def refusal(self, upstream: str) -> UpstreamError | None:
        """What to tell in place of asking; None where an endpoint that is left alone may be asked
        all the same, since there is somebody who takes connections.
        """
        if self._open is None or self._open.failure is not Failure.NO_CONNECTION:
            return None
        said = self._open.message.removeprefix(f"{upstream}: ")
        seconds = self._open.ends_at - self._clock()
        next_try = f"in {seconds:.1f} s" if seconds > 0 else "under way"
        return self._open.error_type(
            upstream, f"{said} (that was a moment ago; the next try is {next_try})"
        )

    def _succeeded(self) -> None:
        self._bad_answers = 0
        if self._open is not None:
            self._open = None
            self._on_change(None)

    def _failed(self, trial: "Trial", failure: Failure, error: UpstreamError) -> None:
        self._bad_answers += 1
        if self._open is None:
            if failure is not Failure.BAD_ANSWER or self._bad_answers >= MAX_BAD_ANSWERS:
                self._leave_alone(failure, error, FIRST_OPEN_SECONDS)
                self._on_change(error.message)
        elif trial is self._probe:
            seconds = min(2 * self._open.planned_seconds, MAX_OPEN_SECONDS)
            self._leave_alone(failure, error, seconds)

    def _leave_alone(self, failure: Failure, error: UpstreamError, seconds: float) -> None:
        ends_at = self._clock() + seconds * self._random_share()
        self._open = _Open(failure, type(error), error.message, ends_at, seconds)

    def _left(self, trial: "Trial") -> None:
        if trial is self._probe:
            self._probe = None


class Trial:
    """One request's word on an endpoint. On leaving, its place is free, also where it was cancelled
    and has nothing to tell.
    """

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit

    def answered(self, status: int, error: UpstreamError) -> None:
        """`error` is what a 5xx is told as."""
        if status >= 500 and status != _NOT_IMPLEMENTED:
            self.failed(Failure.BAD_ANSWER, error)
        else:
            self._circuit._succeeded()

    def failed(self, failure: Failure, error: UpstreamError) -> None:
        self._circuit._failed(self, failure, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._circuit._left(self)
