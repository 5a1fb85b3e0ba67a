"""`python -m tests.storm --seed 123`, or `--seeds 1000`: runs storms, and tells of those that found something."""

import argparse
import asyncio
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

from tests.storm.world import Report, World
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.migrations import schema

_MEMORY = Path("/dev/shm")


@cache
def _prepared() -> tuple[Path, Catalog]:
    """A folder with a migrated database to copy, and what is offered."""
    folder = Path(tempfile.mkdtemp(prefix="storm-", dir=_MEMORY if _MEMORY.is_dir() else None))
    asyncio.run(schema.prepare(f"sqlite:///{folder / 'template.sqlite'}"))
    (folder / "catalog.toml").write_text(catalog.default_text())
    return folder, catalog.read_file(folder / "catalog.toml")


def storm(seed: int) -> Report:
    """One storm."""
    folder, offered = _prepared()
    own = folder / str(seed)
    own.mkdir()
    try:
        return World(seed, own, folder / "template.sqlite", offered).run()
    finally:
        shutil.rmtree(own)


def again(seed: int) -> str:
    """How to repeat it."""
    return f"make storm SEED={seed}"


def _main() -> int:
    parser = argparse.ArgumentParser(prog="tests.storm", description=__doc__)
    parser.add_argument("--seed", type=int, help="one storm, told in full")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if options.seed is not None:
        report = storm(options.seed)
        print("\n".join([*report.story, "", *(report.findings or ["everything is in order"])]))
        return bool(report.findings)
    began, failed = time.monotonic(), []
    with ProcessPoolExecutor(options.jobs) as pool:
        seeds = range(options.first, options.first + options.seeds)
        for done, report in enumerate(pool.map(storm, seeds), 1):
            if report.findings:
                failed.append(report.seed)
                print(f"seed {report.seed}: {again(report.seed)}", *report.findings, sep="\n    ", flush=True)
            if done % 100 == 0:
                print(f"{done} storms, {done / (time.monotonic() - began):.1f} a second", flush=True)
    print(f"{options.seeds} storms in {time.monotonic() - began:.0f} s; failed: {failed or 'none'}")
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{(cpu.ru_utime + cpu.ru_stime) / options.seeds:.2f} s of CPU each")
    return bool(failed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # or the order of sets of texts would be chance
        sys.exit("run it with PYTHONHASHSEED=0, or by `make storm`")
    sys.exit(_main())
