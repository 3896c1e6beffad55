"""The one log line of each request, and its counts."""

import time

import structlog

from mirror.metrics import Metrics
from mirror.web.request import Facts

CLIENT_CLOSED_REQUEST = 499


class Journal:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger().bind()

    def record(self, facts: Facts, method: str, client: str) -> None:
        """Probes and pages about the mirror itself are not counted."""
        status = facts.status or CLIENT_CLOSED_REQUEST
        seconds = round(time.monotonic() - facts.started_at, 4)
        if facts.probe is not None:
            self._log.debug("probe", path=facts.probe, status=status, seconds=seconds)
            return
        address = facts.address
        kind = address.kind.value
        self._metrics.answered(facts.upstream, kind, method, status, facts.cache, facts.sent_bytes)
        if facts.is_pull_saved and address.repository is not None:
            self._metrics.pull_saved(facts.upstream, address.repository.name)
        fields: dict[str, object] = {
            "method": method[:16],
            "kind": kind,
            "upstream": facts.upstream,
            "repository": address.repository.name if address.repository else "",
            "reference": str(address.reference or ""),
            "status": status,
            "bytes": facts.sent_bytes,
            "seconds": seconds,
            "cache": facts.cache.value,
            "client": client,
        }
        if facts.cut_short:
            fields["cut_short"] = True
        if facts.error is not None:
            fields["error"] = facts.error
        self._log.info("request", **fields)
