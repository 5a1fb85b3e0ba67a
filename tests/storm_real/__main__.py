"""`python -m tests.storm_real --minutes 4 --seed 1`: one storm over real processes; exit status 1 if it found anything.

It needs root: libvirtd runs in network namespaces. Everything that it starts it ends.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.storm_real.cloud import SHORT, Size
from tests.storm_real.storm import storm


def _main() -> int:
    parser = argparse.ArgumentParser(prog="tests.storm_real", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--short", action="store_true", help="the one of `make test`")
    options = parser.parse_args()
    size = SHORT if options.short else msgspec.structs.replace(Size(), seconds=options.minutes * 60)
    with tempfile.TemporaryDirectory(prefix="storm-real-") as folder:
        outcome = storm(Path(folder), options.seed, size)
        if outcome.found:
            for log in sorted(Path(folder).glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
    print(outcome)
    return 1 if outcome.found else 0


if __name__ == "__main__":
    sys.exit(_main())
