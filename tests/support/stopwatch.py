"""Time as it passes for who can run: what a machine that stands still adds is nobody's doing."""

import threading
import time

TICK_SECONDS = 0.05
# A tick that comes later than this tells that nothing ran meanwhile.
LATE_SECONDS = 0.25


class Stopwatch:
    """From entering the block to leaving it; `seconds` is known then."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._left = threading.Event()
        self._ticking = threading.Thread(target=self._tick)

    def __enter__(self) -> "Stopwatch":
        self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._ticking.join()

    def _tick(self) -> None:
        is_over = False
        while not is_over:
            before = time.monotonic()
            is_over = self._left.wait(TICK_SECONDS)
            passed_seconds = time.monotonic() - before
            self.seconds += passed_seconds if passed_seconds < LATE_SECONDS else TICK_SECONDS
