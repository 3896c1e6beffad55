"""What can be asked for, by name, and with which arguments: the same whether a server runs or not.

ls        pattern
rm        image
pin       image
unpin     image
gc        older_than_seconds, removes
verify    bytes_per_second, refetches
"""

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from mirror import __version__
from mirror.upkeep.cache import Cache
from mirror.upkeep.lines import Lines, Refused
from mirror.upkeep.listing import list_images
from mirror.upkeep.naming import ImageName, parse_image
from mirror.upkeep.pinning import pin_image, unpin_image
from mirror.upkeep.removing import remove_image
from mirror.upkeep.sweeping import sweep
from mirror.upkeep.verifying import verify

T = TypeVar("T")
Arguments = Mapping[str, Any]


class Keeper:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._is_verifying = False

    def run(self, command: str, arguments: Arguments) -> Lines:
        """The command's lines; what it does, it does as they are asked for.

        They raise Refused, MirrorError, OSError; this raises Refused.
        """
        cache = self._cache
        match command:
            case "ls":
                return list_images(cache, _optional(arguments, "pattern", str))
            case "rm":
                return remove_image(cache, self._image(arguments))
            case "pin":
                return pin_image(cache, self._image(arguments))
            case "unpin":
                return unpin_image(cache, self._image(arguments))
            case "gc":
                older_than_seconds = _wanted(arguments, "older_than_seconds", float)
                return sweep(cache, older_than_seconds, removes=_wanted(arguments, "removes", bool))
            case "verify":
                return self._verify(arguments)
            case _:
                raise Refused(f"this mirror, of version {__version__}, does not know the command")

    async def _verify(self, arguments: Arguments) -> Lines:
        """One at a time: two would only take the disk from each other."""
        rate = _optional(arguments, "bytes_per_second", int)
        refetches = _wanted(arguments, "refetches", bool)
        if self._is_verifying:
            raise Refused("a `mirror verify` is under way already")
        self._is_verifying = True
        try:
            async with aclosing(verify(self._cache, rate, refetches=refetches)) as lines:
                async for line in lines:
                    yield line
        finally:
            self._is_verifying = False

    def _image(self, arguments: Arguments) -> ImageName:
        return parse_image(_wanted(arguments, "image", str), self._cache.directory)


def _wanted(arguments: Arguments, name: str, kind: type[T]) -> T:
    """Raises Refused."""
    value = _optional(arguments, name, kind)
    if value is None:
        raise Refused(f"the command lacks its {name}")
    return value


def _optional(arguments: Arguments, name: str, kind: type[T]) -> T | None:
    """Raises Refused."""
    value = arguments.get(name)
    if value is not None and not isinstance(value, kind):
        raise Refused(f"the command's {name} is of another kind than {kind.__name__}")
    return value
