"""The `mirror` command, also as `python -m mirror`."""

import errno
import sys
from contextlib import suppress

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main() -> None:
    """Loading the program takes a second: a Ctrl-C within it is one like any other.

    Where the output goes may be full.
    """
    try:
        from mirror.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        with suppress(OSError):
            sys.stderr.write(f"the output cannot be written: {error.strerror}\n")
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
