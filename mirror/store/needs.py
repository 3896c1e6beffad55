"""What pinned images need: the statements of the index about it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Insert,
    Select,
    Table,
    Update,
    bindparam,
    delete,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql.dml import ReturningDelete

from mirror.names import Digest, Repository
from mirror.store.links import MAX_DIGESTS_ASKED
from mirror.store.schema import blobs, needs, pins


def add_blob() -> Insert:
    """Pinned where a pin needs it, `of` being its digest once more."""
    is_needed = select(needs.c.digest).where(needs.c.digest == bindparam("of")).exists()
    return insert(blobs).values(pinned=is_needed).on_conflict_do_nothing()


def note_pin() -> Insert:
    statement = insert(pins)
    new = statement.excluded
    keys = [column.name for column in pins.primary_key]
    return statement.on_conflict_do_update(keys, set_={"digest": new.digest})


def drop_pin(repository: Repository, reference: str) -> Delete:
    return delete(pins).where(*_is(pins, repository, reference))


def drop_needs(repository: Repository, reference: str) -> ReturningDelete[Any]:
    """Returns their digests."""
    return delete(needs).where(*_is(needs, repository, reference)).returning(needs.c.digest)


def ask_needs(repository: Repository, reference: str) -> Select[Any]:
    return select(needs.c.digest).where(*_is(needs, repository, reference))


def note_needs() -> Insert:
    """For rows of `need_of`."""
    return insert(needs).on_conflict_do_nothing()


def need_of(repository: Repository, reference: str, digest: Digest) -> dict[str, object]:
    return {
        "upstream": repository.upstream,
        "repository": repository.name,
        "reference": reference,
        "digest": str(digest),
    }


def ask_who_needs(digest: Digest) -> Select[Any]:
    query = select(needs.c.upstream, needs.c.repository, needs.c.reference)
    return query.where(needs.c.digest == str(digest))


def mark(digests: Iterable[Digest]) -> Iterator[Update]:
    """Sets or clears `pinned` of these, by what is needed now."""
    everyone = list(digests)
    is_needed = select(needs.c.digest).where(needs.c.digest == blobs.c.digest).exists()
    for first in range(0, len(everyone), MAX_DIGESTS_ASKED):
        some: Sequence[str] = [str(each) for each in everyone[first : first + MAX_DIGESTS_ASKED]]
        yield update(blobs).where(blobs.c.digest.in_(some)).values(pinned=is_needed)


def _is(table: Table, repository: Repository, reference: str) -> tuple[ColumnElement[bool], ...]:
    return (
        table.c.upstream == repository.upstream,
        table.c.repository == repository.name,
        table.c.reference == reference,
    )
