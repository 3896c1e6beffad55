"""A registry for tests: it counts what it is asked for, and fails on demand."""

import asyncio
import ssl
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

from multidict import CIMultiDict

from tests.fakes import answers
from tests.fakes.auth import Auth, BearerAuth, Door, NoAuth
from tests.fakes.contents import Contents, Repository
from tests.fakes.delivery import Answer, Delivery
from tests.fakes.faults import Fault, Rule
from tests.fakes.http import HttpServer
from tests.fakes.images import referrer_entry
from tests.fakes.ratelimit import RateLimit
from tests.fakes.seen import Kind, Seen

Redirect = str | Callable[[str, str], str]
GUARDED: frozenset[Kind] = frozenset({"manifest", "blob", "tags", "referrers"})


class FakeRegistry(Contents, HttpServer):
    """A registry on a free port of 127.0.0.1, open while its `async with` block runs."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        Contents.__init__(self)
        HttpServer.__init__(self, tls, host)
        self.auth: Auth = NoAuth()
        self.private: dict[str, Collection[str]] = {}
        self.ratelimit: RateLimit | None = None
        self.referrers_api = True
        self.redirect_blobs_to: Redirect | None = None
        self.redirect_manifests_to: Redirect | None = None
        self.redirect_head = True
        self.cdn_takes_authorization = False  # S3 and R2 answer 400 to it
        self.faults: list[Rule] = []
        self._released = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        if error is None and self._failures:
            raise self._failures[0]

    # How it behaves

    def fail(
        self,
        *faults: Fault,
        kind: Kind | None = None,
        method: str | None = None,
        repository: str | None = None,
        reference: str | None = None,
        times: int | None = None,
        skip: int = 0,
        before_auth: bool = False,
    ) -> Rule:
        """Lets fitting requests meet these faults; the first rule that fits is the one."""
        like = (kind, method, repository, reference)
        rule = Rule(faults, *like, times=times, skip=skip, before_auth=before_auth)
        self.faults.append(rule)
        return rule

    def heal(self) -> None:
        """Ends all faults for requests to come; what is stalled needs `release` as well."""
        self.faults.clear()

    def release(self) -> None:
        """Lets everything go on that is stalled now."""
        self._released.set()
        self._released = asyncio.Event()

    def revoke_tokens(self) -> None:
        if isinstance(self.auth, BearerAuth):
            self.auth.revoke()

    def serve_blobs_from(self, cdn: "FakeRegistry") -> None:
        """Redirects blob requests to another fake, which gets to hold the same contents."""
        cdn.contents = self.contents
        self.redirect_blobs_to = lambda _, digest: f"{cdn.url}/cdn/{digest}?signature=a%2Fb%3D"

    # How it answers

    def respond(self, seen: Seen) -> tuple[Answer, Delivery]:
        refusal = self._refusal(seen)
        challenged = refusal is not None and seen.kind in GUARDED
        takers = (rule for rule in self.faults if rule.takes(seen, challenged=challenged))
        rule = next(takers, None)
        faults = rule.faults if rule is not None else ()
        headers, delivery = CIMultiDict(seen.headers), Delivery(self._released)
        for fault in faults:
            fault.hide(headers)
        answer = refusal or self._answer(seen, headers)
        for fault in faults:
            fault.change(answer)
            fault.shape(delivery)
        if self.ratelimit is not None and seen.kind == "manifest" and refusal is None:
            answer = self.ratelimit.apply(seen, answer)
        return answer, delivery

    def _refusal(self, seen: Seen) -> Answer | None:
        if seen.kind not in GUARDED | {"ping"} or seen.is_for_cdn:
            return None
        allowed = self.private.get(seen.repository)
        return self.auth.refuse(seen, Door(seen.repository, allowed, f"{self.url}/token"))

    def _answer(self, seen: Seen, headers: CIMultiDict[str]) -> Answer:
        if seen.is_for_cdn:
            return self._answer_cdn(seen, headers)
        if seen.kind == "token":
            return self.auth.token(seen)
        if seen.method not in ("GET", "HEAD"):
            return answers.error(405, "UNSUPPORTED", "this registry is read only")
        if seen.kind == "ping":
            return answers.json_answer(200, {})
        place = self.repositories.get(seen.repository)
        if seen.kind == "referrers" and not self.referrers_api:
            return answers.not_a_page()
        if place is None:
            return answers.name_unknown() if seen.kind in GUARDED else answers.not_a_page()
        if seen.kind == "manifest":
            return self._answer_manifest(seen, place, headers)
        if seen.kind == "blob":
            return self._answer_blob(seen, place, headers)
        if seen.kind == "tags":
            return answers.tags(seen.repository, list(place.tags), seen.query)
        return self._answer_referrers(seen, place)

    def _answer_manifest(self, seen: Seen, place: Repository, headers: CIMultiDict[str]) -> Answer:
        digest = place.tags.get(seen.reference, seen.reference)
        if digest not in place.manifests:
            return answers.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        if self.redirect_manifests_to is not None:
            return answers.redirect(_location(self.redirect_manifests_to, seen))
        return answers.manifest(*place.manifests[digest], digest, headers)

    def _answer_blob(self, seen: Seen, place: Repository, headers: CIMultiDict[str]) -> Answer:
        if seen.reference not in place.blobs:
            return answers.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        to = self.redirect_blobs_to
        if to is not None and (self.redirect_head or seen.method == "GET"):
            return answers.redirect(_location(to, seen))
        return answers.blob(seen.method, self.contents[seen.reference], seen.reference, headers)

    def _answer_cdn(self, seen: Seen, headers: CIMultiDict[str]) -> Answer:
        if seen.authorization is not None and not self.cdn_takes_authorization:
            return Answer(400, body=b"<Error>Only one auth mechanism allowed</Error>")
        if seen.reference not in self.contents:
            return answers.not_a_page()
        return answers.blob(seen.method, self.contents[seen.reference], None, headers)

    def _answer_referrers(self, seen: Seen, place: Repository) -> Answer:
        if answers.DIGEST.fullmatch(seen.reference) is None:
            return answers.error(400, "DIGEST_INVALID", "this is no digest")
        found = (referrer_entry(d, *m, seen.reference) for d, m in place.manifests.items())
        return answers.referrers([e for e in found if e], seen.query.get("artifactType"))


def _location(to: Redirect, seen: Seen) -> str:
    return f"{to}/{seen.reference}" if isinstance(to, str) else to(seen.repository, seen.reference)
