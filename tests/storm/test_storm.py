"""Storms over a whole cloud, each from one seed: nothing is lost, doubled, leaked or stuck, whatever happens to it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SEEDS, _PARTS = 16, 3  # in so many tests, which run beside each other


def _storm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, with a fixed order of sets."""
    command = [sys.executable, "-m", "tests.storm", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("part", range(_PARTS))
def test_after_a_storm_everything_is_as_customers_wanted_it(part: int) -> None:
    done = _storm("--first", str(1 + part * _SEEDS), "--seeds", str(_SEEDS), "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    most_mb = re.search(r"(\d+) MB at most", done.stdout)
    assert most_mb is not None
    assert int(most_mb[1]) < 250  # some 130; a storm that is kept would take 70 more


def test_the_same_seed_tells_the_same_story() -> None:
    first, again = _storm("--seed", "7"), _storm("--seed", "7")
    assert len(first.stdout.splitlines()) > 100, first.stderr
    assert first.stdout == again.stdout
    assert _storm("--seed", "8").stdout != first.stdout
