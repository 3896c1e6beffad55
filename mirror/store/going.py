"""The names of blobs that are being removed: what a kill leaves between the index and the disk is
removed at the next start, and does not take room that nobody counts.

    <random>    a digest in each line
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from mirror.errors import DigestInvalid
from mirror.names import Digest
from mirror.store.paths import Paths


class Going:
    """One list for each step of a removal, a few at most. All methods block."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def note(self, digests: Iterable[Digest]) -> Path | None:
        """Before the index forgets them; to be dropped once they have gone. None: the disk takes no
        list. On a full one blobs have to go all the same, and `mirror gc` finds what is left.
        """
        path = self._paths.going_list()
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{digest}\n" for digest in digests))
        except OSError:
            self.drop(path)
            return None
        return path

    def drop(self, noted: Path | None) -> None:
        if noted is not None:
            with suppress(OSError):
                noted.unlink(missing_ok=True)

    def left(self) -> Iterator[tuple[Path, list[Digest]]]:
        """The lists of an earlier process; to be called while nothing is removed. Raises
        OSError.
        """
        for path in list(self._paths.going.glob("*")):
            yield path, list(_digests_of(path.read_text(errors="replace")))


def _digests_of(text: str) -> Iterator[Digest]:
    """A power cut may have left half of a list, or something else."""
    for line in text.splitlines():
        with suppress(DigestInvalid):
            yield Digest.parse(line)
