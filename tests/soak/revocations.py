"""Which 403 a client of a soak may get.

The mirror renews a token once for each question. Where the second one is revoked as well, between
its issue and its use, the upstream's 401 is what the client is told. Nothing else excuses a 403.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TELLS_OF_401 = re.compile(rb"answered 401 for (/v2/[^\s;]+)")


@dataclass(frozen=True)
class _Refused:
    moment: int
    path: str  # at the upstream
    authorization: str | None


class Revocations:
    """What the upstream revoked and refused. A moment is a place in the order of all that."""

    def __init__(self) -> None:
        self._moment = 0
        self._revoked: dict[str | None, int] = {}  # by Authorization; each once
        self._refused: list[_Refused] = []

    def revoke(self, tokens: Iterable[str]) -> None:
        self._moment += 1
        self._revoked.update((f"Bearer {token}", self._moment) for token in tokens)

    def refuse(self, path: str, authorization: str | None) -> None:
        """After a 401; with None, nothing was presented."""
        self._moment += 1
        self._refused.append(_Refused(self._moment, path, authorization))

    def now(self) -> int:
        return self._moment

    def explain(self, path: str, since: int) -> bool:
        """Whether, after that moment, it was refused at first, and then with another token that
        was revoked after that moment.
        """
        refused = [each for each in self._refused if each.moment > since and each.path == path]
        return any(
            self._revoked.get(again.authorization, 0) > since
            and any(first.authorization != again.authorization for first in refused[:n])
            for n, again in enumerate(refused)
        )


class Excuses:
    """For the clients, who know when they asked."""

    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations
        self._asking: Counter[str] = Counter()
        self._since: dict[str, int] = {}

    @contextmanager
    def asking(self, path: str) -> Iterator[None]:
        """While a client asks the mirror for it. Whoever comes later to the same download gets
        what befell the first one: they count as one request.
        """
        if not self._asking[path]:
            self._since[path] = self._revocations.now()
        self._asking[path] += 1
        try:
            yield
        finally:
            self._asking[path] -= 1

    def excuse(self, path: str, upstream_paths: Iterable[str], body: bytes) -> bool:
        """Whether a 403 was to be expected, right after `asking`. After HEAD `body` is empty, and
        any of the paths may be the one that was refused.
        """
        if body:
            told = _TELLS_OF_401.search(body)
            upstream_paths = [told[1].decode()] if told else []
        since = self._since[path]
        return any(self._revocations.explain(each, since) for each in upstream_paths)
