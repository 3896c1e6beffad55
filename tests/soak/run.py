"""A soak as it runs: rounds of work among faults and restarts, then healing, then the verdict."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGTERM

from tests.soak.clients import UPSTREAM, Clients
from tests.soak.plan import ROUND_SECONDS, Event, Operation, Plan, Round
from tests.soak.tally import Sample, Tally
from tests.soak.upstream import SoakRegistry
from tests.support import procfs
from tests.support.layers import eventually
from tests.support.nursery import Succession, succession
from tests.support.process import write_settings

Say = Callable[[str], None]

# Beyond its time a round begins no operation; those under way may end, on a healed upstream.
END_SECONDS = 60
SETTINGS = {"tag_ttl": "1s", "not_found_ttl": "1s", "connect_timeout": "2s", "idle_timeout": "1s"}


async def soak(plan: Plan, folder: Path, say: Say) -> Tally:
    """Everything that was planned, and the judgement."""
    async with SoakRegistry() as registry:
        upstream = {"endpoints": [registry.url], **SETTINGS}
        file = write_settings(folder, {UPSTREAM: upstream}, shutdown_grace="2s")
        async with succession(file) as mirror:
            run = Soak(mirror, registry)
            for n, each in enumerate(plan.rounds):
                await run.round(each)
                if n in (plan.steady_from, len(plan.rounds) - 1):
                    await run.rest()
                say(f"round {n + 1} of {len(plan.rounds)}: {run.tally.complete} right answers")
            await run.end()
            return run.tally


class Soak:
    def __init__(self, mirror: Succession, registry: SoakRegistry) -> None:
        self.tally = Tally()
        self._mirror = mirror
        self._registry = registry
        self._clients = Clients(mirror, registry, self.tally)
        self._up = asyncio.Event()
        self._up.set()
        self._done = 0  # operations, in this round
        self._due: deque[Event] = deque()
        self._turn = asyncio.Lock()  # one event after the other
        self._news = asyncio.Event()
        self._is_over = False

    async def round(self, planned: Round) -> None:
        for ware in planned.wares:
            self._registry.stock(ware)
        most_bytes = max(max(ware.layer_bytes) for ware in planned.wares)
        for trouble in planned.troubles:
            self._registry.trouble(trouble, most_bytes)
        self._done, self._due, self._is_over = 0, deque(planned.events), False
        async with asyncio.TaskGroup() as tasks:
            conductor = tasks.create_task(self._conduct())
            clients = [tasks.create_task(self._work(each)) for each in planned.clients]
            await asyncio.wait(clients, timeout=ROUND_SECONDS)
            self._is_over = True
            await self._heal()
            _, stuck = await asyncio.wait(clients, timeout=END_SECONDS)
            for client in stuck:
                self.tally.fault("a client came to no end on a healed upstream")
                client.cancel()
            while self._due:  # the round was over before they were
                await self._act(self._due.popleft())
            async with self._turn:
                conductor.cancel()
        await self._heal()

    async def rest(self) -> None:
        """Waits until nothing happens any more, and notes what the process holds then."""
        await self._heal()
        try:
            await self._mirror.until_idle()
        except TimeoutError:
            self.tally.fault("downloads or followers are left at rest")
        await self._registry.stop()  # with the connections that are kept for further requests
        if self.tally.rested:
            await self._until_descriptors_are_back(self.tally.rested[0].descriptors)
        self.tally.rested.append(await self._sample())
        await self._registry.listen()

    async def end(self) -> None:
        """After a last kill everything pulls right, and nothing is left over."""
        await self._restart(Event(0, "kill"))
        for ware, image in self._registry.images:
            if not await self._clients.pull(ware.repository, ware.tag, image):
                name = f"{ware.repository}:{ware.tag}"
                self.tally.fault(f"{name} does not pull after healing; {self.tally.last_refusal}")
        await self._mirror.until_idle()
        for path in self._mirror.staged():
            self.tally.fault(f"left in staging: {path.relative_to(self._mirror.storage)}")
        for path in self._mirror.stored():
            if await asyncio.to_thread(_digest, path) != path.name:
                self.tally.fault(f"a wrong blob under a final name: {path.name}")
        for line in self._mirror.log.read_text().splitlines():
            if not _is_plain(line):
                self.tally.fault(f"log: {line[:2000]}")
        self.tally.met = self._registry.met
        self.tally.judge()

    async def _work(self, operations: tuple[Operation, ...]) -> None:
        for operation in operations:
            await self._up.wait()
            if self._is_over:
                self.tally.left_out += 1
                continue
            await self._clients.do(operation)
            self._done += 1
            self._news.set()

    async def _conduct(self) -> None:
        """Lets events happen when they are due."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._due and self._due[0].after_operations <= self._done:
                await self._act(self._due.popleft())

    async def _act(self, event: Event) -> None:
        async with self._turn:
            match event.what:
                case "kill" | "terminate":
                    await self._restart(event)
                case "refuse":
                    await self._registry.stop()
                case "listen":
                    await self._registry.listen()
                case "revoke tokens":
                    self._registry.revoke_tokens()
                case "release stalls":
                    self._registry.release()
        self.tally.events[event.what] += 1

    async def _restart(self, event: Event) -> None:
        self._up.clear()
        number = SIGKILL if event.what == "kill" else SIGTERM
        code = await self._mirror.end(number)
        if code != (-SIGKILL if number == SIGKILL else 0):
            self.tally.fault(f"ended with {code} after {number.name}")
        await self._mirror.start()
        self._up.set()

    async def _heal(self) -> None:
        self._registry.heal()
        self._registry.release()
        await self._registry.listen()

    async def _sample(self) -> Sample:
        pid = self._mirror.pid
        descriptors = self._descriptors()  # before there is a connection for the page
        page = (await self._mirror.get("/metrics")).body.decode().splitlines()
        gauges = {
            name: float(v)
            for name, _, v in (line.rpartition(" ") for line in page)
            if name[:1] not in ("", "#")
        }
        return Sample(
            procfs.memory_bytes(pid),
            descriptors,
            procfs.threads(pid),
            gauges["mirror_downloads_active"],
            gauges["mirror_download_followers"],
        )

    def _descriptors(self) -> int:
        return procfs.passing_descriptors(self._mirror.pid, self._mirror.storage)

    async def _until_descriptors_are_back(self, number: int) -> None:
        async def are_back() -> bool:
            return self._descriptors() <= number

        try:
            await eventually(are_back)
        except TimeoutError:
            return  # the judgement tells


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain(line: str) -> bool:
    """Whether a log line is JSON, and none of an exception; a kill may cut the last one short."""
    try:
        return "exception" not in json.loads(line)
    except ValueError:
        return False
