"""The disk, drawn. All paths are made here.

    <root>/control.sock                where commands reach the one that serves (see control/)
    <root>/lock                        held (flock) by the one process that serves from this folder
    <root>/served                      held while several processes serve from it (see served.py)
    <root>/index.db                    what is known about the blobs (see index.py)
    <root>/index.db.new                one that is being made anew (see recovery.py, standin.py)
    <root>/index.db.damaged-<seconds>  one that could not be read (see recovery.py)
    <root>/index.sound                 whether it need not be read through (see soundness.py)
    <root>/index.backup.db             a copy of index.db, an hour old at most (see backup.py)
    <root>/index.backup.db.new         one that is being made
    <root>/blobs/sha256/ab/abcdef…     whole, verified, immutable (see blobs.py)
    <root>/damaged/sha256/<hex>        a blob that was found wrong, for the operator to look at
    <root>/damaged/sha256/<hex>.<n>    another one of the same name
    <root>/going/<random>              names of blobs that are being removed (see going.py)
    <root>/staging/sha256/<hex>/       on the way in (see staging.py): data and progress
    <root>/staging/<random>            a small content that is being written

Beside each database lies what SQLite keeps there while it is open, and leaves when it is killed:
`-wal` (changes that are not in the file yet), `-shm` (a map of them), `-journal` (while the file is
not in WAL mode). It goes wherever its database goes, also to `.damaged-<seconds>`.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from mirror.names import Digest

_COMPANIONS = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class Paths:
    """Below one folder. Nothing here touches the disk."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def served(self) -> Path:
        return self.root / "served"

    @property
    def control(self) -> Path:
        return self.root / "control.sock"

    @property
    def index(self) -> Path:
        return self.root / "index.db"

    @property
    def sound(self) -> Path:
        return self.root / "index.sound"

    @property
    def backup(self) -> Path:
        return self.root / "index.backup.db"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def damaged(self) -> Path:
        return self.root / "damaged"

    @property
    def going(self) -> Path:
        return self.root / "going"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    def blob(self, digest: Digest) -> Path:
        return self.blobs / digest.algorithm / digest.hex[:2] / digest.hex

    def damaged_blob(self, digest: Digest, number: int) -> Path:
        name = f"{digest.hex}.{number}" if number else digest.hex
        return self.damaged / digest.algorithm / name

    def going_list(self) -> Path:
        """Another one each time."""
        return self.going / secrets.token_hex(16)

    def damaged_index(self, seconds: int) -> Path:
        return self.root / f"{self.index.name}.damaged-{seconds}"

    def staged(self, digest: Digest) -> Path:
        """A folder, with `data_in` and `progress_in` it."""
        return self.staging / digest.algorithm / digest.hex

    def staged_small(self) -> Path:
        """Another one each time."""
        return self.staging / secrets.token_hex(16)


def data_in(staged: Path) -> Path:
    return staged / "data"


def progress_in(staged: Path) -> Path:
    return staged / "progress"


def new(database: Path) -> Path:
    """Where it is made until it is whole."""
    return database.with_name(f"{database.name}.new")


def log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")


def with_companions(database: Path) -> list[Path]:
    """The file itself comes last: a log that is left alone would be taken for another file's."""
    names = [f"{database.name}{each}" for each in (*_COMPANIONS, "")]
    return [database.with_name(name) for name in names]
