"""What tests read out of the mirror's answers."""

import json
from typing import Any

from tests.fakes.client import RawResponse
from tests.fakes.registry import FakeRegistry


def json_of(answer: RawResponse) -> Any:
    return json.loads(answer.body)


def error_of(answer: RawResponse) -> tuple[int, str]:
    """(status, OCI code) of an error as clients must be able to read it."""
    assert answer.headers["Content-Type"] == "application/json"
    assert "WWW-Authenticate" not in answer.headers
    errors = json_of(answer)["errors"]
    assert errors[0]["message"]
    return answer.status, errors[0]["code"]


def message_of(answer: RawResponse) -> str:
    message: str = json_of(answer)["errors"][0]["message"]
    return message


def is_stale(answer: RawResponse) -> bool:
    """Whether it says so: both headers or neither."""
    warned = answer.headers.get("Warning", "").startswith("110 ")
    assert warned == ("Age" in answer.headers)
    return warned


def manifests_asked(registry: FakeRegistry) -> tuple[int, int]:
    """(HEADs, GETs) of manifests that came to the registry."""
    return registry.count("HEAD", "manifest"), registry.count("GET", "manifest")
