"""What the tests ask of every client, whatever its command line looks like.

Some can `run` a pulled image, too. References are those that users write
(docker.io/library/demo:1); how they come to be asked of the mirror is each client's own affair.
"""

from __future__ import annotations

from typing import Protocol


class Client(Protocol):
    """A program that pulls images through the mirror."""

    def pull(self, reference: str) -> None:
        """Pulls, or fails the test with all that the client said."""

    def forget(self) -> None:
        """Removes everything that was pulled, so that the next pull starts from nothing."""

    def digests(self, reference: str) -> set[str]:
        """What the client can prove that it holds of an image which it pulled."""
