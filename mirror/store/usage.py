"""How much is stored, as the gauges show it and as room is reckoned by."""

from mirror.metrics import Metrics


class Usage:
    """Of whole blobs, manifests included; what is on its way in is not."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.blobs = 0
        self.size_bytes = 0

    def add(self, blobs: int, size_bytes: int) -> None:
        """Less than nothing, where they have gone."""
        self.blobs += blobs
        self.size_bytes += size_bytes
        self._metrics.cache_blobs.set(self.blobs)
        self._metrics.cache_bytes.set(self.size_bytes)
