"""How much is stored, as the gauges show it and as room is reckoned by."""

from mirror.metrics import Metrics, State


class Usage:
    """Of whole blobs, manifests included; what is on its way in is not. What was set aside
    counts for itself.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.blobs = 0
        self.size_bytes = 0
        self._pinned_blobs = 0
        self._pinned_bytes = 0
        self._damaged_blobs = 0
        self.damaged_bytes = 0

    def add(self, blobs: int, size_bytes: int) -> None:
        """Less than nothing, where they have gone."""
        self.blobs += blobs
        self.size_bytes += size_bytes
        self._show()

    def set_pinned(self, blobs: int, size_bytes: int) -> None:
        """How many of them stay, whatever room is wanted."""
        self._pinned_blobs, self._pinned_bytes = blobs, size_bytes
        self._show()

    def add_damaged(self, blobs: int, size_bytes: int) -> None:
        self._damaged_blobs += blobs
        self.damaged_bytes += size_bytes
        self._metrics.holds(State.DAMAGED, self._damaged_blobs, self.damaged_bytes)

    def _show(self) -> None:
        may_go = self.blobs - self._pinned_blobs, self.size_bytes - self._pinned_bytes
        self._metrics.holds(State.STORED, *may_go)
        self._metrics.holds(State.PINNED, self._pinned_blobs, self._pinned_bytes)
