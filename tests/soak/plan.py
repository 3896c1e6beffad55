"""What happens in a soak, drawn from a seed before anything runs: contents, faults, what clients
do, and when the mirror or the upstream goes away.

A round brings new contents and new faults. Its events are told by the number of operations that
clients have done in it, so that they fall among the same work however fast the machine is.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from tests.fakes.seen import Kind

Doing = Literal[
    "pull",
    "blob",
    "open range",
    "closed range",
    "suffix",
    "parallel ranges",
    "tag",
    "tag HEAD",
    "blob HEAD",
    "tags/list",
    "hang up",
    "slow",
]
Wrong = Literal[
    "cut",
    "reset",
    "stall",
    "429",
    "500",
    "503",
    "garbage",
    "wrong byte",
    "no length",
    "untold length",
    "range ignored",
    "hang up",
    "trickle",
]
What = Literal["kill", "terminate", "refuse", "listen", "revoke tokens", "release stalls"]

ROUND_SECONDS = 8
CLIENTS = 8
OPERATIONS_EACH = 24
REPOSITORIES = ("org/app", "org/tool", "library/base")
MOST_CONTENT_BYTES = 1_000_000_000  # of all rounds together: the fake registry keeps it in memory
MOST_ROUND_BYTES = 24_000_000
# The rounds at the end of a soak which one process lives through.
STEADY_SHARE = 1 / 3

_DOINGS: dict[Doing, int] = {
    "pull": 4,
    "blob": 4,
    "open range": 2,
    "closed range": 2,
    "suffix": 1,
    "parallel ranges": 2,
    "tag": 4,
    "tag HEAD": 2,
    "blob HEAD": 2,
    "tags/list": 1,
    "hang up": 3,
    "slow": 1,
}
_WRONG_WITH_BLOBS: tuple[Wrong, ...] = (
    "cut",
    "cut",
    "reset",
    "reset",
    "stall",
    "429",
    "500",
    "503",
    "garbage",
    "wrong byte",
    "no length",
    "untold length",
    "range ignored",
    "hang up",
    "trickle",
    "trickle",
)
_WRONG_WITH_OTHERS: tuple[Wrong, ...] = (
    "cut",
    "reset",
    "stall",
    "429",
    "500",
    "503",
    "garbage",
    "hang up",
)
_KINDS: tuple[Kind, ...] = ("blob", "blob", "blob", "manifest", "manifest", "tags", "token")


@dataclass(frozen=True)
class Ware:
    """An image that the upstream gets; the content follows from the seed."""

    repository: str
    tag: str
    seed: str
    layer_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """`ware` counts all wares so far; `layer` and the places are shares of what is there."""

    doing: Doing
    ware: int
    layer: float
    start: float
    end: float


@dataclass(frozen=True)
class Trouble:
    """So many answers of the kind, after `skip` others, go wrong at this place."""

    wrong: Wrong
    kind: Kind
    place: float
    skip: int
    times: int


@dataclass(frozen=True)
class Event:
    after_operations: int
    what: What


@dataclass(frozen=True)
class Round:
    wares: tuple[Ware, ...]
    troubles: tuple[Trouble, ...]
    clients: tuple[tuple[Operation, ...], ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Plan:
    seed: int
    rounds: tuple[Round, ...]
    steady_from: int  # the first round without a restart, and so on to the end

    def digest(self) -> str:
        """The same for the same plan."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def draw(seed: int, seconds: int) -> Plan:
    """At least three rounds: one with restarts, and two that one process lives through."""
    chance = random.Random(seed)
    count = max(3, seconds // ROUND_SECONDS)
    steady_from = count - max(2, round(count * STEADY_SHARE))
    most_bytes = min(MOST_ROUND_BYTES, MOST_CONTENT_BYTES // count)
    rounds: list[Round] = []
    known = 0
    for n in range(count):
        wares = _wares(chance, seed, n, most_bytes)
        known += len(wares)
        rounds.append(
            Round(
                wares,
                _troubles(chance),
                tuple(_operations(chance, known, len(wares)) for _ in range(CLIENTS)),
                _events(chance, with_restarts=n < steady_from),
            )
        )
    return Plan(seed, tuple(rounds), steady_from)


def _wares(chance: random.Random, seed: int, number: int, most_bytes: int) -> tuple[Ware, ...]:
    """One large layer, and some of the sizes that are on the edges of something."""
    small = (1, 1000, 1024, 1025, 65_536, 300_000)
    each = most_bytes // len(REPOSITORIES)
    return tuple(
        Ware(
            repository,
            f"round-{number}",
            f"{seed} {number} {repository}",
            (chance.randint(each // 4, each), chance.choice(small), chance.choice(small)),
        )
        for repository in REPOSITORIES
    )


def _troubles(chance: random.Random) -> tuple[Trouble, ...]:
    troubles = []
    for _ in range(chance.randint(6, 16)):
        kind = chance.choice(_KINDS)
        wrong = chance.choice(_WRONG_WITH_BLOBS if kind == "blob" else _WRONG_WITH_OTHERS)
        place = chance.choice([0.0, chance.random(), chance.random(), 0.99])
        troubles.append(Trouble(wrong, kind, place, chance.randint(0, 5), chance.randint(1, 4)))
    return tuple(troubles)


def _operations(chance: random.Random, known: int, fresh: int) -> tuple[Operation, ...]:
    """Half of them with what has just come."""
    operations = []
    for doing in chance.choices(list(_DOINGS), list(_DOINGS.values()), k=OPERATIONS_EACH):
        first = chance.choice([0, known - fresh])
        start, end = sorted((chance.random(), chance.random()))
        ware = chance.randrange(first, known)
        operations.append(Operation(doing, ware, chance.random(), start, end))
    return tuple(operations)


def _events(chance: random.Random, *, with_restarts: bool) -> tuple[Event, ...]:
    """The upstream that stops listening does so for a while."""
    most = CLIENTS * OPERATIONS_EACH
    events = [Event(chance.randrange(most), "revoke tokens")]
    events += [Event(chance.randrange(most), "release stalls") for _ in range(2)]
    if chance.random() < 0.4:
        away = chance.randrange(most - 10)
        events += [Event(away, "refuse"), Event(away + chance.randint(3, 10), "listen")]
    if with_restarts:
        hows: tuple[What, ...] = chance.choice((("kill",), ("kill", "kill"), ("terminate",)))
        events += [Event(chance.randrange(most), how) for how in hows]
    return tuple(sorted(events, key=lambda event: event.after_operations))
