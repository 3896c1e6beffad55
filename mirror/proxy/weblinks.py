"""The Link header of a paged list (RFC 8288), read. No I/O."""

import re

from mirror.weburls import parse_url

MAX_LINK_CHARACTERS = 4096
_NEXT = re.compile(r'<([^<>]*)>\s*;[^<]*\brel="?next"?', re.IGNORECASE)


def next_query(header: str | None) -> dict[str, str] | None:
    """The query that asks for the next page, whatever host or path the link names.

    None where there is none: without a query it would be the first page, again and again.
    """
    if header is None or len(header) > MAX_LINK_CHARACTERS:
        return None
    match = _NEXT.search(header)
    if match is None:
        return None
    try:
        query = parse_url(match[1]).query
    except ValueError:
        return None
    return {name: value for name, value in query.items() if name != "ns"} or None
