"""URLs that others wrote: in Location, in Link, as a realm. No I/O."""

from yarl import URL


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """`encoded` leaves every character as it stands. Raises ValueError for what is no URL.

    For brackets in front of an empty host (`http://[]@/`) yarl 1.25 raises IndexError.
    """
    try:
        return URL(text, encoded=encoded)
    except IndexError:
        raise ValueError("no host where there should be one") from None
