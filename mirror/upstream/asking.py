"""One question to an upstream: endpoints in order, past those that are left alone, and at each the
accounts in order, past those that rest or whose password is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import aiohttp
import structlog
from cachetools import LRUCache
from yarl import URL

from mirror.errors import (
    UpstreamDenied,
    UpstreamError,
    UpstreamNotFound,
)
from mirror.manifest import ACCEPT_EVERYTHING
from mirror.metrics import Metrics
from mirror.upstream.answers import error_of, login_error_of, most_telling
from mirror.upstream.challenge import Challenge, parse_challenges
from mirror.upstream.circuits import Circuit, RequestClass, Trial
from mirror.upstream.definition import ANONYMOUS, Account, Upstream, name_of
from mirror.upstream.hearing import SETBACKS, Hearing
from mirror.upstream.ratelimit import RateLimits
from mirror.upstream.tokens import MAX_REMEMBERED, Logins
from mirror.upstream.transport import Pool, Transport

TOKEN_LIMIT_BYTES = 64 * 1024
# ECR Public answers 400 to an expired token (aws/containers-roadmap#2835).
_REFUSES_TOKENS_WITH_400 = frozenset({"public.ecr.aws"})

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Question:
    """`path` is what follows the repository's name. `attempt` counts what came before for the same
    bytes: each begins with the next endpoint. `is_further`: for one connection more, so that a
    refusal is about their number, and says nothing of the account or the endpoint.
    """

    method: str
    repository_name: str
    kind: str
    path: str
    headers: Mapping[str, str] | None = None
    query: Mapping[str, str] | None = None
    attempt: int = 0
    is_further: bool = False

    @property
    def is_pull(self) -> bool:
        """As Docker Hub counts them."""
        return self.method == "GET" and self.kind == "manifest"

    @property
    def is_for_blob(self) -> bool:
        return self.kind == "blob"

    @property
    def pool(self) -> Pool:
        return Pool.BLOBS if self.is_for_blob and self.method == "GET" else Pool.CONTROL


class Asker:
    """All that is known of one upstream's health, limits and logins stands behind `ask`."""

    def __init__(self, upstream: Upstream, transport: Transport, metrics: Metrics) -> None:
        self._upstream = upstream
        self._transport = transport
        self._metrics = metrics
        self.ratelimits = RateLimits(upstream, metrics)
        self._logins = Logins(upstream, self._ask_realm)
        # By endpoint and repository's name, where another account was denied.
        self._let_in: LRUCache[tuple[URL, str], str] = LRUCache(MAX_REMEMBERED)
        self._circuits = {
            (endpoint, request_class): self._circuit(endpoint, request_class)
            for endpoint in upstream.endpoints
            for request_class in RequestClass
        }

    async def aclose(self) -> None:
        await self._logins.aclose()

    def can_spare_blobs(self) -> bool:
        """Whether blobs can be asked for without going past an endpoint that is left alone, or an
        account that rests.
        """
        names = [each.username for each in self._upstream.accounts] or [ANONYMOUS]
        return any(
            self._circuits[endpoint, RequestClass.BLOBS].is_closed
            and not self.ratelimits.rests(endpoint, name, for_blob=True)
            for endpoint in self._upstream.endpoints
            for name in names
        )

    async def ask(self, question: Question) -> aiohttp.ClientResponse:
        """A 2xx from the first endpoint that gives one, its body unread. Raises UpstreamError.

        An endpoint that is left alone is asked in the end, where nobody else gave anything, if it
        takes connections at all: it may fail for one blob only.
        """
        request_class = RequestClass.BLOBS if question.is_for_blob else RequestClass.CONTROL
        endpoints = self._upstream.endpoints
        first = question.attempt % len(endpoints)
        errors: list[UpstreamError] = []
        left_alone: list[tuple[URL, Circuit]] = []
        for endpoint in chain(endpoints[first:], endpoints[:first]):
            circuit = self._circuits[endpoint, request_class]
            if (trial := circuit.enter()) is None:
                left_alone.append((endpoint, circuit))
                continue
            try:
                return await self._ask_endpoint(endpoint, question, trial)
            except UpstreamError as error:
                errors.append(error)
        for endpoint, circuit in left_alone:
            try:
                if (refusal := circuit.refusal(self._upstream.name)) is not None:
                    raise refusal
                return await self._ask_endpoint(endpoint, question, circuit.insist())
            except UpstreamError as error:
                errors.append(error)
        raise most_telling(errors)

    async def _ask_endpoint(
        self, endpoint: URL, question: Question, trial: Trial
    ) -> aiohttp.ClientResponse:
        """As the account that is let in here where others are not, else the one with the most left;
        then as the others; anonymously in the end, where some of them rest or are refused. No
        request is sent where nobody may ask.
        """
        hearing = Hearing(
            self._upstream, self.ratelimits, self._logins, endpoint, for_blob=question.is_for_blob
        )
        with trial:
            for account in self._accounts_in_order(endpoint, question):
                if account is None and hearing.is_settled:
                    break
                if await self._is_left_out(endpoint, account, question):
                    hearing.is_complete = False
                    continue
                try:
                    response = await self._ask_as(account, endpoint, question, trial)
                except (*SETBACKS, UpstreamDenied, UpstreamNotFound) as error:
                    hearing.note(error)
                else:
                    if hearing.denial is not None:
                        self._let_in[endpoint, question.repository_name] = name_of(account)
                    return response
            raise hearing.verdict()

    def _accounts_in_order(self, endpoint: URL, question: Question) -> list[Account | None]:
        """None, who is nobody, comes last."""
        let_in = self._let_in.get((endpoint, question.repository_name))

        def order(account: Account) -> tuple[bool, float]:
            left = self.ratelimits.left(endpoint, account.username)
            return bool(left) and account.username == let_in, left

        return [*sorted(self._upstream.accounts, key=order, reverse=True), None]

    async def _is_left_out(
        self, endpoint: URL, account: Account | None, question: Question
    ) -> bool:
        name = name_of(account)
        if self.ratelimits.rests(endpoint, name, for_blob=question.is_for_blob):
            return True
        return account is not None and await self._logins.is_left_out(account)

    async def _ask_as(
        self, account: Account | None, endpoint: URL, question: Question, trial: Trial
    ) -> aiohttp.ClientResponse:
        remote_name = self._upstream.remote_name(question.repository_name)
        url = self._url(endpoint, question)
        sent = dict(question.headers or {"Accept": ACCEPT_EVERYTHING})

        async def send(authorization: str | None) -> aiohttp.ClientResponse:
            if authorization:
                sent["Authorization"] = authorization
            return await self._transport.send(
                question.method,
                url,
                question.kind,
                question.pool,
                sent,
                trial=None if question.is_further else trial,
            )

        authorization = await self._logins.remembered(endpoint, remote_name, account)
        response = await send(authorization)
        if _wants_login(response, endpoint, authorization):
            await self._transport.drain(response)
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            authorization = await self._logins.answer(
                endpoint,
                remote_name,
                account,
                challenges or await self._ping_challenges(endpoint),
                authorization,
            )
            response = await send(authorization)
        return await self._judge(response, account, endpoint, question, authorization)

    async def _judge(
        self,
        response: aiohttp.ClientResponse,
        account: Account | None,
        endpoint: URL,
        question: Question,
        authorization: str | None,
    ) -> aiohttp.ClientResponse:
        """The answer, noted, where it is a good one. Raises UpstreamError."""
        name, status = name_of(account), response.status
        headers, for_blob = response.headers, question.is_for_blob
        if not question.is_further:
            self.ratelimits.note(endpoint, name, status, headers, for_blob=for_blob)
        if status in (200, 206):
            if question.is_pull:
                self._metrics.pull_spent(self._upstream.name, name, question.repository_name)
            self._logins.note_answer(account, authorization, status)
            return response
        body = await self._transport.drain(response)
        if response.url.origin() == endpoint.origin():
            self._logins.note_answer(account, authorization, status)
        what = self._url(endpoint, question).path
        raise error_of(self._upstream.name, what, status, headers, body, name)

    def _url(self, endpoint: URL, question: Question) -> URL:
        remote_name = self._upstream.remote_name(question.repository_name)
        return (endpoint / "v2" / remote_name / question.path).with_query(question.query)

    async def _ping_challenges(self, endpoint: URL) -> list[Challenge]:
        """For registries that answer 401 without a challenge, as gcr.io may."""
        response = await self._transport.send("GET", endpoint / "v2/", "ping")
        await self._transport.drain(response)
        return parse_challenges(response.headers.getall("WWW-Authenticate", []))

    async def _ask_realm(
        self, endpoint: URL, url: URL, authorization: str | None, account: str
    ) -> bytes:
        """For the logins. The circuit is that of the endpoint which named the realm."""
        circuit = self._circuits[endpoint, RequestClass.TOKENS]
        if (trial := circuit.enter()) is None:
            if (refusal := circuit.refusal(self._upstream.name)) is not None:
                raise refusal
            trial = circuit.insist()
        headers = {"Authorization": authorization} if authorization else {}
        with trial:
            response = await self._transport.send(
                "GET", url, "token", headers=headers, follow=False, trial=trial
            )
        if response.status == 200:
            return await self._transport.read(response, "token", TOKEN_LIMIT_BYTES)
        body = await self._transport.drain(response)
        raise login_error_of(
            self._upstream.name, url.host or "", response.status, response.headers, body, account
        )

    def _circuit(self, endpoint: URL, request_class: RequestClass) -> Circuit:
        upstream, word = self._upstream.name, request_class.value

        def show(error: str | None) -> None:
            self._metrics.circuit(upstream, str(endpoint), word, is_open=error is not None)
            facts = {"upstream": upstream, "endpoint": str(endpoint), "class": word}
            if error is None:
                _log.info("endpoint is asked again", **facts)
            else:
                _log.warning("endpoint is left alone", **facts, error=error)

        self._metrics.circuit(upstream, str(endpoint), word, is_open=False)
        return Circuit(show)


def _wants_login(
    response: aiohttp.ClientResponse, endpoint: URL, authorization: str | None
) -> bool:
    """Only the endpoint itself may ask for a login, not where it redirected to."""
    if response.url.origin() != endpoint.origin():
        return False
    if response.status == 400:
        return bool(authorization) and endpoint.host in _REFUSES_TOKENS_WITH_400
    return response.status == 401
