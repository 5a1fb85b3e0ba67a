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
from functools import cache, partial
from pathlib import Path

from tests.storm.world import Report, World
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.migrations import schema

_MEMORY = Path("/dev/shm")  # where there is one
_TEMPLATE, _CATALOG = "template.sqlite", "catalog.toml"


@cache
def _offered(file: Path) -> Catalog:
    return catalog.read_file(file)


def _prepare(folder: Path) -> None:
    """Have a migrated database to copy there, and what is offered."""
    asyncio.run(schema.prepare(f"sqlite:///{folder / _TEMPLATE}"))
    (folder / _CATALOG).write_text(catalog.default_text())


def storm(folder: Path, seed: int) -> Report:
    """One storm, in a prepared folder."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    own = folder / str(seed)
    own.mkdir()
    try:
        return World(seed, own, folder / _TEMPLATE, _offered(folder / _CATALOG)).run()
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
    with tempfile.TemporaryDirectory(prefix="storm-", dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        folder = Path(name)
        _prepare(folder)
        if options.seed is None:
            return _run_many(folder, range(options.first, options.first + options.seeds), options.jobs)
        report = storm(folder, options.seed)
    print("\n".join([*report.story, "", *(report.findings or ["everything is in order"])]))
    return bool(report.findings)


def _run_many(folder: Path, seeds: range, jobs: int) -> int:
    began, failed = time.monotonic(), []
    with ProcessPoolExecutor(jobs) as pool:
        for done, report in enumerate(pool.map(partial(storm, folder), seeds), 1):
            if report.findings:
                failed.append(report.seed)
                print(f"seed {report.seed}: {again(report.seed)}", *report.findings, sep="\n    ", flush=True)
            if done % 100 == 0:
                print(f"{done} storms, {done / (time.monotonic() - began):.1f} a second", flush=True)
    print(f"{len(seeds)} storms in {time.monotonic() - began:.0f} s; failed: {failed or 'none'}")
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{(cpu.ru_utime + cpu.ru_stime) / len(seeds):.2f} s of CPU each; {cpu.ru_maxrss >> 10} MB at most")
    return bool(failed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # or the order of sets of texts would be chance
        sys.exit("run it with PYTHONHASHSEED=0, or by `make storm`")
    sys.exit(_main())
