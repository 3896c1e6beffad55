"""The command line of the benchmark."""

import argparse
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FrameType

from bench import report
from bench.load import LoadError
from bench.run import SERVER_NAMES, measure_all
from bench.scale import FULL, QUICK
from bench.servers import ServerError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folders in it have random names


def main() -> int:
    """0: measured, whatever the numbers; 1: a server could not be measured at all."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _leave)  # so that servers are stopped and folders removed
    scale = QUICK if arguments.quick else FULL
    scale = replace(
        scale, rounds=arguments.rounds or scale.rounds, copy_bodies=arguments.copy_bodies
    )
    try:
        run = measure_all(scale, arguments.servers, arguments.dir, arguments.upstream_dir)
    except (ServerError, LoadError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.markdown(run))
    if arguments.json:
        arguments.json.write_text(report.as_json(run))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of smaller blobs")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="how often all is repeated")
    parser.add_argument(
        "--copy-bodies", action="store_true", help="large bodies are read, not thrown away unread"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, to a file")
    parser.add_argument(
        "--servers",
        type=_server_names,
        default=list(SERVER_NAMES),
        metavar="A,B",
        help=f"of {', '.join(SERVER_NAMES)} (all)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the caches keep their files (%(default)s); 2 GB are used for each",
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


def _server_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SERVER_NAMES):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return [name for name in SERVER_NAMES if name in names]


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
