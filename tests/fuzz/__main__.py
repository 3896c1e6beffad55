"""Runs one target under atheris, guided by coverage: `python -m tests.fuzz requests FOLDER …`.

The folder keeps inputs that reached something new, for the next run to begin with. Further
arguments are libFuzzer's. A finding is shown, and written to a file.
"""

import sys
from pathlib import Path

import atheris

from tests.fuzz.seeds import SEEDS

with atheris.instrument_imports(include=["mirror", "yarl"]):
    from tests.fuzz.targets import TARGETS

# A parser that takes this long for one input is a finding.
SECONDS_FOR_ONE_INPUT = 5
MAX_INPUT_BYTES = 16 * 1024


def main() -> None:
    name, folder, *arguments = sys.argv[1:]
    corpus = Path(folder)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-timeout={SECONDS_FOR_ONE_INPUT}", f"-max_len={MAX_INPUT_BYTES}"]
    words = f"-dict={Path(__file__).parent / f'{name}.dict'}"
    atheris.Setup([sys.argv[0], *limits, words, *arguments, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
