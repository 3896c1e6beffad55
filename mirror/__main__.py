"""The `mirror` command, also as `python -m mirror`."""

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Loading the program takes a second: a Ctrl-C within it is one like any other."""
    try:
        from mirror.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
