"""The command line of the benchmark."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from bench import picture, report
from bench.field import field
from bench.run import measure_all
from bench.scale import FULL, QUICK
from bench.server import Server, ServerError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folders in it have random names


def main() -> int:
    """0: measured, whatever the numbers; 1: there was nothing to measure with."""
    kinds = field()
    arguments = _parser(kinds).parse_args()
    signal.signal(signal.SIGTERM, _leave)  # so that servers are stopped and folders removed
    scale = QUICK if arguments.quick else FULL
    scale = replace(
        scale, rounds=arguments.rounds or scale.rounds, copy_bodies=arguments.copy_bodies
    )
    try:
        chosen = {name: kinds[name] for name in kinds if name in arguments.servers}
        run = measure_all(scale, chosen, arguments.dir, arguments.upstream_dir)
    except ServerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.markdown(run))
    if arguments.json:
        arguments.json.write_text(report.as_json(run))
    if arguments.svg:
        arguments.svg.write_text(picture.svg(picture.panels(run), picture.heading(run)))
    return 0


def _parser(kinds: dict[str, type[Server]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of smaller blobs")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="how often all is repeated")
    parser.add_argument(
        "--copy-bodies", action="store_true", help="large bodies are read, not thrown away unread"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, to a file")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the medians as a picture")
    parser.add_argument(
        "--servers",
        type=_Names(kinds),
        default=list(kinds),
        metavar="A,B",
        help=f"of {', '.join(kinds)} (all)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the caches keep their files (%(default)s); 3 GB are used for each",
    )
    parser.add_argument(
        "--upstream-dir",
        type=Path,
        default=SHARED_MEMORY,
        help="where the upstream keeps its files (%(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


class _Names:
    """Names that are known, separated by commas."""

    def __init__(self, known: Iterable[str]) -> None:
        self._known = set(known)

    def __call__(self, text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - self._known:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return names


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
