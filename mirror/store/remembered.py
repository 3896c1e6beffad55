"""What upstreams said of their tags, and which lists they gave: the statements of the index.

Times are wall-clock seconds.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Delete, Insert, Select, Table, delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Row

from mirror.names import Digest, Repository, Tag
from mirror.store.schema import listings, tags

# Clients choose the questions (n, last, artifactType); the newest answers are enough for an outage.
MAX_LISTINGS = 2_000


@dataclass(frozen=True, slots=True)
class RememberedTag:
    digest: Digest
    checked_at: float


@dataclass(frozen=True, slots=True)
class RememberedListing:
    body: bytes
    headers: dict[str, str]
    checked_at: float


def upsert_into(table: Table) -> Insert:
    """For rows of all columns: the new one takes the place of the old one."""
    statement = insert(table)
    keys = [column.name for column in table.primary_key]
    updated = {
        column.name: statement.excluded[column.name]
        for column in table.columns
        if column.name not in keys
    }
    return statement.on_conflict_do_update(keys, set_=updated)


def row_of_tag(repository: Repository, tag: Tag, remembered: RememberedTag) -> dict[str, object]:
    return _key(repository) | {
        "tag": str(tag),
        "digest": str(remembered.digest),
        "checked_at": remembered.checked_at,
    }


def ask_tag(repository: Repository, tag: Tag) -> Select[Any]:
    """A row for `tag_of`."""
    return select(tags.c.digest, tags.c.checked_at).where(*_is_tag(repository, tag))


def tag_of(row: Row[Any]) -> RememberedTag:
    return RememberedTag(Digest.parse(row.digest), float(row.checked_at))


def drop_tag(repository: Repository, tag: Tag) -> Delete:
    return delete(tags).where(*_is_tag(repository, tag))


def row_of_listing(
    repository: Repository, question: str, remembered: RememberedListing
) -> dict[str, object]:
    return _key(repository) | {
        "question": question,
        "body": remembered.body,
        "headers": json.dumps(remembered.headers),
        "checked_at": remembered.checked_at,
    }


def ask_listing(repository: Repository, question: str) -> Select[Any]:
    """A row for `listing_of`."""
    return select(listings.c.body, listings.c.headers, listings.c.checked_at).where(
        listings.c.upstream == repository.upstream,
        listings.c.repository == repository.name,
        listings.c.question == question,
    )


def listing_of(row: Row[Any]) -> RememberedListing:
    headers = dict(json.loads(row.headers))
    return RememberedListing(bytes(row.body), headers, float(row.checked_at))


def drop_old_listings() -> Delete:
    """All but the newest MAX_LISTINGS."""
    newest = select(listings.c.checked_at).order_by(listings.c.checked_at.desc())
    floor = newest.offset(MAX_LISTINGS).limit(1).scalar_subquery()
    return delete(listings).where(listings.c.checked_at <= floor)


def _key(repository: Repository) -> dict[str, object]:
    return {"upstream": repository.upstream, "repository": repository.name}


def _is_tag(repository: Repository, tag: Tag) -> tuple[Any, ...]:
    return (
        tags.c.upstream == repository.upstream,
        tags.c.repository == repository.name,
        tags.c.tag == str(tag),
    )
