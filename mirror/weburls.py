"""URLs that others wrote: in Location, in Link, as a realm. No I/O."""

import re

from yarl import URL

_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f.]*:[0-9a-f:.]*(%[a-z0-9._-]+)?", re.ASCII | re.IGNORECASE)


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """`encoded` leaves every character as it stands. Raises ValueError for what is no URL.

    For brackets in front of an empty host (`http://[]@/`) yarl 1.25 raises IndexError.
    """
    try:
        return URL(text, encoded=encoded)
    except IndexError:
        raise ValueError("no host where there should be one") from None


def has_host(url: URL) -> bool:
    """A name or an address, and no other spelling of one, which a proxy may read in its own way: up
    to a blank, say.
    """
    return _HOST.fullmatch(url.raw_host or "") is not None
