"""The upstream of a soak: a fake registry that remembers whose bytes it has spoilt."""

import random
from collections import Counter
from dataclasses import dataclass

from tests.fakes.auth import BearerAuth
from tests.fakes.delivery import Answer, Delivery
from tests.fakes.faults import (
    Cut,
    Fault,
    Garbage,
    HangUp,
    IgnoreRange,
    NoLength,
    Reset,
    Rule,
    Stall,
    Status,
    Trickle,
    WrongByte,
)
from tests.fakes.images import Image
from tests.fakes.registry import GUARDED, FakeRegistry
from tests.fakes.seen import Seen
from tests.soak.plan import Trouble, Ware
from tests.soak.revocations import Revocations

SMALL_BYTES = 4000  # places in bodies that are not blobs
TRICKLE_BYTES_PER_SECOND = 8_000_000
_PLAIN: dict[str, Fault] = {
    "429": Status(429, {"Retry-After": "1"}),
    "500": Status(500),
    "503": Status(503),
    "garbage": Garbage(),
    "no length": NoLength(),
    "untold length": NoLength(chunked=False),
    "range ignored": IgnoreRange(),
    "hang up": HangUp(),
    "trickle": Trickle(TRICKLE_BYTES_PER_SECOND),
}


@dataclass(frozen=True)
class Spoilt(Fault):
    """One byte flipped, at this share of whatever body it is."""

    place: float

    def change(self, answer: Answer) -> None:
        WrongByte(int(self.place * len(answer.body))).change(answer)


class SoakRegistry(FakeRegistry):
    """With tokens, for everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.auth: BearerAuth = BearerAuth()
        self.revocations = Revocations()
        self.images: list[tuple[Ware, Image]] = []
        self.spoilt: set[str] = set()  # digests, of which wrong bytes were sent
        self.met: Counter[str] = Counter()  # faults, by kind of request
        self._wrong: dict[Rule, Trouble] = {}
        self.tagged: dict[tuple[str, str], set[str]] = {}  # all that a tag ever was

    def stock(self, ware: Ware) -> None:
        """A new image, under a tag of its own and as the latest of its repository."""
        chance = random.Random(ware.seed)
        layers = [chance.randbytes(size) for size in ware.layer_bytes]
        image = self.add_image(ware.repository, ware.tag, layers)
        self.tag(ware.repository, "latest", image.digest)
        for tag in (ware.tag, "latest"):
            self.tagged.setdefault((ware.repository, tag), set()).add(image.digest)
        self.images.append((ware, image))

    def trouble(self, trouble: Trouble, most_bytes: int) -> None:
        size = most_bytes if trouble.kind == "blob" else SMALL_BYTES
        fault = _fault(trouble, int(trouble.place * size))
        rule = self.fail(fault, kind=trouble.kind, skip=trouble.skip, times=trouble.times)
        self._wrong[rule] = trouble

    def revoke_tokens(self) -> None:
        self.revocations.revoke(self.auth.issued)
        super().revoke_tokens()

    def paths_behind(self, path: str) -> list[str]:
        """What the mirror may have to ask for where a client asks for this: for a tag that has
        moved, the manifest by its digest as well.
        """
        folder, _, tag = path.rpartition("/")
        repository = folder.removeprefix("/v2/").removesuffix("/manifests")
        digests = self.tagged.get((repository, tag), ())
        return [path, *(f"{folder}/{digest}" for digest in digests)]

    async def listen(self) -> None:
        if self._server is None:
            await self.start()

    def respond(self, seen: Seen) -> tuple[Answer, Delivery]:
        used = [rule.used for rule in self.faults]
        answered = super().respond(seen)
        for rule, before in zip(self.faults, used, strict=True):
            if rule.used > before:
                self.met[f"{self._wrong[rule].kind} {self._wrong[rule].wrong}"] += 1
                if isinstance(rule.faults[0], Spoilt | Garbage):
                    self.spoilt.add(seen.reference)
        if seen.kind in GUARDED and answered[0].status == 401:
            self.revocations.refuse(seen.path, seen.authorization)
        return answered


def _fault(trouble: Trouble, at: int) -> Fault:
    match trouble.wrong:
        case "cut":
            return Cut(at)
        case "reset":
            return Reset(at)
        case "stall":
            return Stall(at)
        case "wrong byte":
            return Spoilt(trouble.place)
        case plain:
            return _PLAIN[plain]
