"""The `mirror` command, also as `python -m mirror`."""

import sys
from contextlib import suppress

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main() -> None:
    """Loading the program takes a second: a Ctrl-C within it is one like any other.

    Where the output goes may be full. What fails on a file of our own names that file.
    """
    try:
        from mirror.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if error.filename is not None:
            raise
        with suppress(OSError):
            sys.stderr.write(f"the output cannot be written: {error.strerror}\n")
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
