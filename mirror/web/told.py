"""What the process that owns the folder tells a front process of an answer, beside the answer: the
facts for its log and its counts, and the file in which a blob's bytes are.

Both are this program; what stands here is between the two, and goes to no client.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from aiohttp import web

from mirror.addressing import Address, Kind
from mirror.metrics import Cache
from mirror.names import Digest, Repository, Tag
from mirror.web.request import Facts

# Headers of the owner's answers; the second one of bodies that it does not have in memory: they may
# be slow to come, and be cut short.
TOLD = "Mirror-Told"
STREAMED = "Mirror-Streamed"
# Headers of a front's requests, and never of a client's: it reads files by itself; it asks nothing,
# and tells what it has counted; it asks nothing, and opens its line (see fronts.py).
BY_FILE = "Mirror-By-File"
COUNTS = "Mirror-Counts"
LINE = "Mirror-Line"
# Its client speaks HTTP/1.0, which knows no body of a length to come.
OLD_CLIENT = "Mirror-Old-Client"
# Begins the last line of a body that tells positions, where the blob cannot be had: why.
FAILED_LINE = b"!"
# The same where the file cannot give the rest, and the owner's word may.
NO_FILE_LINE = b"?"
READS_FILES = web.RequestKey("reads_files", bool)


@dataclass(frozen=True, slots=True)
class ToldFile:
    """[start, end) of this blob is, or will be, in the file of this inode: among the stored blobs,
    or the staged ones. `end` None: to where the blob ends. The body tells how far it may be read:
    a line for each position.
    `completes`: the blob's end waits for its digest, also where another answer goes on with it.
    """

    digest: str
    inode: int
    is_stored: bool
    start: int
    end: int | None
    is_whole: bool
    completes: bool


def tell(facts: Facts, file: ToldFile | None = None) -> str:
    address = facts.address
    fresh_seconds = None if facts.repeat_until is None else facts.repeat_until - time.monotonic()
    told = {
        "pid": os.getpid(),
        "kind": address.kind.value,
        "upstream": address.upstream,
        "repository": address.repository.name if address.repository else None,
        "reference": str(address.reference) if address.reference else None,
        "cache": facts.cache.value,
        "error": facts.error,
        "is_pull_saved": facts.is_pull_saved,
        # JSON knows no infinity.
        "fresh_seconds": -1 if fresh_seconds == inf else fresh_seconds,
        "file": None if file is None else asdict(file),
    }
    return json.dumps(told, separators=(",", ":"))


def hear(text: str, facts: Facts) -> ToldFile | None:
    """Fills the facts in; returns the file, where there is one. Raises ValueError, KeyError."""
    told = json.loads(text)
    facts.address = _address(told)
    facts.cache = Cache(told["cache"])
    facts.error = told["error"]
    facts.is_pull_saved = told["is_pull_saved"]
    fresh_seconds = told["fresh_seconds"]
    if fresh_seconds is not None:
        fresh_seconds = inf if fresh_seconds == -1 else fresh_seconds
        facts.repeat_until = time.monotonic() + fresh_seconds
    return None if told["file"] is None else ToldFile(**told["file"])


def pid_in(text: str) -> int:
    """Who told it. Raises ValueError, KeyError."""
    return int(json.loads(text)["pid"])


def _address(told: dict[str, Any]) -> Address:
    upstream, name, reference = told["upstream"], told["repository"], told["reference"]
    return Address(
        Kind(told["kind"]),
        upstream,
        None if name is None else Repository(upstream, name),
        None if reference is None else _reference(reference),
    )


def _reference(text: str) -> Digest | Tag:
    return Digest.parse(text) if ":" in text else Tag(text)
