"""What the system allows this process, and those that it starts."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


def most_descriptors() -> int:
    """As many as can be allowed; RLIM_INFINITY for no end."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextmanager
def descriptors_allowed(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
