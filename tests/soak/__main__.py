"""`make soak`: exit code 1 when anything went wrong."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.soak.plan import draw
from tests.soak.run import soak


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    seconds = int(os.environ.get("SOAK_SECONDS", "180"))
    seed = int(os.environ.get("SOAK_SEED", "1"))
    plan = draw(seed, seconds)
    _say(f"seed {seed}, {len(plan.rounds)} rounds, plan {plan.digest()}")
    with tempfile.TemporaryDirectory(prefix="mirror-soak-") as folder:
        tally = asyncio.run(soak(plan, Path(folder), _say))
    for line in tally.lines():
        _say(line)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
