"""What the clients of a soak do, and how each answer is judged as it comes."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from tests.fakes.client import RawResponse, raw_open
from tests.fakes.images import Image, digest_of
from tests.soak.plan import Doing, Operation
from tests.soak.revocations import Excuses
from tests.soak.tally import NEVER, Tally
from tests.soak.upstream import SoakRegistry
from tests.support.nursery import Succession

UPSTREAM = "registry.test"
PATIENCE_SECONDS = 40
PARALLEL_RANGES = 4
SLOW_PIECES = 12
SLOW_PAUSE_SECONDS = 0.1
SLOW_BUFFER_BYTES = 16 * 1024


@dataclass(frozen=True)
class Asked:
    """What is asked for, and what is right."""

    kind: str
    path: str
    right: bytes
    digest: str
    verified: bool = True  # whether the mirror promises to give no wrong bytes
    start: int | None = None
    end: int | None = None

    def headers(self) -> Mapping[str, str]:
        if self.start is None:
            return {}
        return {"Range": f"bytes={self.start}-{'' if self.end is None else self.end - 1}"}

    def expected(self) -> bytes:
        return self.right[self.start or 0 : self.end]


class Clients:
    def __init__(self, mirror: Succession, registry: SoakRegistry, tally: Tally) -> None:
        self._mirror = mirror
        self._registry = registry
        self._tally = tally
        self._excuses = Excuses(registry.revocations)

    async def do(self, operation: Operation) -> None:
        """One operation; what goes wrong with it is told to the tally."""
        ware, image = self._registry.images[operation.ware]
        digest = image.layers[int(operation.layer * len(image.layers))]
        name = ware.repository
        self._tally.operations[operation.doing] += 1
        if operation.doing in ("tag", "tag HEAD", "tags/list"):
            await self._do_with_tags(operation.doing, name)
        elif operation.doing == "pull":
            await self.pull(name, ware.tag, image)
        else:
            await self._do_with_blob(operation, name, digest)

    async def _do_with_tags(self, doing: Doing, name: str) -> None:
        match doing:
            case "tag":
                await self._tag(name, "latest")
            case "tag HEAD":
                await self._tag(name, "latest", "HEAD")
            case _:
                await self._list(name)

    async def _do_with_blob(self, operation: Operation, name: str, digest: str) -> None:
        match operation.doing:
            case "blob":
                await self._blob(name, digest)
            case "parallel ranges":
                await self._parallel(name, digest)
            case "blob HEAD":
                await self._blob_head(name, digest)
            case "hang up":
                await self._hang_up(name, digest, operation.end)
            case "slow":
                await self._slow(name, digest)
            case _:
                await self._range(operation, name, digest)

    async def pull(self, name: str, tag: str, image: Image) -> bool:
        """As clients do it; whether all of it came, and right."""
        manifest = await self._manifest(name, tag, {image.digest})
        if manifest != image.manifest:
            return False
        blobs = [self._blob(name, digest) for digest in {image.config, *image.layers}]
        return all(await asyncio.gather(*blobs))

    async def _manifest(self, name: str, reference: str, right: set[str]) -> bytes | None:
        path = f"/v2/{UPSTREAM}/{name}/manifests/{reference}"
        answer = await self._fetch("manifest", path)
        self._note("manifest", answer, path)
        if answer.status != 200 or answer.ended != "complete":
            return None
        if digest_of(answer.body) not in right:
            self._tally.fault(f"{path}: another manifest than it ever had")
        self._count(answer)
        return answer.body

    async def _tag(self, name: str, tag: str, method: str = "GET") -> None:
        right = self._registry.tagged[name, tag]
        if method == "GET":
            await self._manifest(name, tag, right)
            return
        path = f"/v2/{UPSTREAM}/{name}/manifests/{tag}"
        answer = await self._fetch("manifest", path, method="HEAD")
        self._note("manifest", answer, path)
        if answer.status == 200 and answer.headers["Docker-Content-Digest"] not in right:
            self._tally.fault(f"{path}: HEAD tells a digest that it never had")

    async def _blob(self, name: str, digest: str) -> bool:
        return await self._judged(self._asked(name, digest))

    async def _blob_head(self, name: str, digest: str) -> None:
        asked = self._asked(name, digest)
        answer = await self._fetch("blob", asked.path, method="HEAD")
        self._note("blob", answer, asked.path, digest)
        length = answer.headers.get("Content-Length")  # none where the upstream told none
        is_right = answer.status != 200 or length in (None, str(len(asked.right)))
        if not is_right and digest not in self._registry.spoilt:
            self._tally.fault(f"{asked.path}: HEAD tells {length} bytes, not {len(asked.right)}")

    async def _range(self, operation: Operation, name: str, digest: str) -> None:
        size = len(self._registry.contents[digest])
        start = min(int(operation.start * size), size - 1)
        end = max(start + 1, int(operation.end * size))
        if operation.doing == "open range":
            await self._judged(self._asked(name, digest, start))
        elif operation.doing == "suffix":
            await self._suffix(self._asked(name, digest, start, verified=False))
        else:
            await self._judged(self._asked(name, digest, start, end, verified=False))

    async def _suffix(self, asked: Asked) -> None:
        headers = {"Range": f"bytes=-{len(asked.expected())}"}
        answer = await self._fetch("blob", asked.path, headers)
        self._judge(asked, answer)

    async def _parallel(self, name: str, digest: str) -> None:
        """One blob in parts, all at once, as containerd 2.1 does it."""
        size = len(self._registry.contents[digest])
        step = max(1, -(-size // PARALLEL_RANGES))
        starts = range(0, size, step)
        parts = [self._asked(name, digest, s, min(s + step, size), verified=False) for s in starts]
        await asyncio.gather(*(self._judged(part) for part in parts))

    async def _list(self, name: str) -> None:
        path = f"/v2/{UPSTREAM}/{name}/tags/list"
        answer = await self._fetch("tags", path)
        self._note("tags", answer, path)
        if answer.status == 200 and answer.ended == "complete":
            self._count(answer)
            if b'"latest"' not in answer.body:
                self._tally.fault(f"{path}: a list without what is there")

    async def _hang_up(self, name: str, digest: str, share: float) -> None:
        asked = self._asked(name, digest)
        await self._fetch("blob", asked.path, leave_after=int(share * len(asked.right)))

    async def _slow(self, name: str, digest: str) -> None:
        """A while at a slow pace, the rest at once."""
        asked = self._asked(name, digest)
        self._judge(asked, await self._fetch("blob", asked.path, slow=True))

    def _asked(
        self,
        name: str,
        digest: str,
        start: int | None = None,
        end: int | None = None,
        *,
        verified: bool = True,
    ) -> Asked:
        path = f"/v2/{UPSTREAM}/{name}/blobs/{digest}"
        right = self._registry.contents[digest]
        return Asked("blob", path, right, digest, verified, start, end)

    async def _judged(self, asked: Asked) -> bool:
        return self._judge(asked, await self._fetch(asked.kind, asked.path, asked.headers()))

    def _judge(self, asked: Asked, answer: RawResponse) -> bool:
        """Whether it is all that was asked for, and right."""
        self._note(asked.kind, answer, asked.path, asked.digest)
        if answer.status not in (200, 206) or answer.ended != "complete":
            return False
        expected = asked.right if answer.status == 200 else asked.expected()
        if answer.body == expected:
            self._count(answer)
            return True
        is_whole = answer.status == 200 or len(asked.expected()) == len(asked.right)
        if asked.verified or is_whole or asked.digest not in self._registry.spoilt:
            self._tally.fault(f"{asked.path} {asked.start}-{asked.end}: WRONG BYTES")
        else:
            self._tally.unverified += 1
        return False

    def _note(self, kind: str, answer: RawResponse, path: str, digest: str = "") -> None:
        self._tally.answered(kind, answer.status)
        if answer.ended not in ("complete", "open"):
            self._tally.broken_off += 1
        if answer.status not in (200, 206) or answer.ended != "complete":
            self._tally.refused(path, answer.status, answer.ended, answer.body)
        if answer.status == 416 and digest in self._registry.spoilt:
            return
        if answer.status == 403 and self._is_excused(path, answer.body):
            self._tally.excused += 1
        elif answer.status in NEVER:
            self._tally.fault(f"{path}: {answer.status} {answer.body[:200]!r}")

    def _is_excused(self, path: str, body: bytes) -> bool:
        upstream_path = path.replace(f"/v2/{UPSTREAM}/", "/v2/", 1)
        paths = self._registry.paths_behind(upstream_path)
        return self._excuses.excuse(path, paths, body)

    def _count(self, answer: RawResponse) -> None:
        self._tally.complete += 1
        self._tally.complete_bytes += len(answer.body)

    async def _fetch(
        self,
        kind: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        leave_after: int | None = None,
        slow: bool = False,
    ) -> RawResponse:
        """Status 0 where the mirror is away, or goes away before it answers."""
        answer, body = RawResponse(), bytearray()
        buffer_bytes = SLOW_BUFFER_BYTES if slow else None
        with self._excuses.asking(path):
            try:
                async with (
                    asyncio.timeout(PATIENCE_SECONDS),
                    raw_open(
                        self._mirror.url + path,
                        headers,
                        method=method,
                        receive_buffer_bytes=buffer_bytes,
                    ) as stream,
                ):
                    answer.status, answer.headers = stream.status, stream.headers
                    pieces = 0
                    while leave_after is None or len(body) < leave_after:
                        data = await stream.read()
                        if not data:
                            break
                        body += data
                        pieces += 1
                        if slow and pieces <= SLOW_PIECES:
                            await asyncio.sleep(SLOW_PAUSE_SECONDS)
                    answer.ended = stream.ended
            except OSError as error:
                if isinstance(error, TimeoutError):
                    self._tally.fault(f"{path}: no end within {PATIENCE_SECONDS} s")
                answer.ended = "reset"
        answer.body = bytes(body)
        return answer
