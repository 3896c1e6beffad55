"""The one log line of each request, and its counts."""

import time

import structlog

from mirror.web.counts import Counts
from mirror.web.repeats import Given, Log
from mirror.web.request import Facts

CLIENT_CLOSED_REQUEST = 499
# Answers given again that may wait for their counts; without their bodies, which may have been
# forgotten since.
MAX_UNCOUNTED = 1000


class Journal:
    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._log = structlog.get_logger().bind()
        self._uncounted: set[Given] = set()
        counts.before_reading(self._count_repeats)

    def record(self, facts: Facts, method: str, client: str) -> None:
        """Probes and pages about the mirror itself are not counted."""
        status = facts.status or CLIENT_CLOSED_REQUEST
        seconds = round(time.monotonic() - facts.started_at, 4)
        if facts.probe is not None:
            self._log.debug("probe", path=facts.probe, status=status, seconds=seconds)
            return
        self._count(facts, method, times=1)
        fields = _fields(facts, method)
        if facts.cut_short:
            fields["cut_short"] = True
        if facts.error is not None:
            fields["error"] = facts.error
        sent_bytes = facts.sent_bytes
        self._log.info("request", **fields, bytes=sent_bytes, seconds=seconds, client=client)

    def log_for_repeats(self, facts: Facts, method: str) -> Log:
        """A log for an answer that will be given again."""
        log: Log = self._log.bind(**_fields(facts, method))
        return log

    def record_repeat(self, given: Given, client: str, seconds: float) -> None:
        """One more time, in full: what is counted for it waits until somebody reads."""
        given.times += 1
        self._uncounted.add(given)
        if len(self._uncounted) >= MAX_UNCOUNTED:
            self._count_repeats()
        given.log.info(
            "request", bytes=given.facts.sent_bytes, seconds=round(seconds, 4), client=client
        )

    def record_cut_repeat(self, facts: Facts, method: str, client: str) -> None:
        """One whose body did not come to its end."""
        self._counts.first_byte_sent(facts.upstream, facts.address.kind.value, 0.0)
        self.record(facts, method, client)

    def _count_repeats(self) -> None:
        while self._uncounted:
            given = self._uncounted.pop()
            times, given.times = given.times, 0
            facts = given.facts
            # Nothing is waited for, so that all of them fall into the first bucket.
            self._counts.first_byte_sent(facts.upstream, facts.address.kind.value, 0.0, times)
            self._count(facts, given.method, times)

    def _count(self, facts: Facts, method: str, times: int) -> None:
        address, upstream = facts.address, facts.upstream
        status = facts.status or CLIENT_CLOSED_REQUEST
        self._counts.answered(
            upstream, address.kind.value, method, status, facts.cache, facts.sent_bytes, times
        )
        if facts.is_pull_saved and address.repository is not None:
            self._counts.pull_saved(upstream, address.repository.name, times)


def _fields(facts: Facts, method: str) -> dict[str, object]:
    """What a request's log line tells but for the moment, the client, and what it got."""
    address = facts.address
    return {
        "method": method[:16],
        "kind": address.kind.value,
        "upstream": facts.upstream,
        "repository": address.repository.name if address.repository else "",
        "reference": str(address.reference or ""),
        "status": facts.status or CLIENT_CLOSED_REQUEST,
        "cache": facts.cache.value,
    }
