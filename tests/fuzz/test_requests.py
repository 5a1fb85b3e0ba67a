"""Random requests to all operations of a real vpsd with a simulated host, made by schemathesis of the description."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.test_access import ROUTES
from tests.fuzz.effort import LONG, SEED, again
from tests.running import Vpsd

_HERE = Path(__file__).parent
_PHASES = "examples,coverage,fuzzing,stateful" if LONG else "examples,coverage"
_EXAMPLES = 150 if LONG else 1  # to an operation, of the two last phases
_LIMIT_SECONDS = 400 if LONG else 60


@pytest.fixture
def vpsd() -> Iterator[Vpsd]:
    """A vpsd with something of everything, that never says 429."""
    running = Vpsd(
        hypervisor="simulator", simulator_boot_seconds=0, rate_limit=0, address_rate_limit=0, login_failures=0
    )
    running.start()
    for number in range(1, 5):
        running.create(f"web-{number}")
        running.post("account/tokens/", {"name": f"token-{number}", "permissions": ["servers:read"]})
    for number in range(1, 5):
        running.until_status(number, "active")
        running.until_copied(running.post(f"servers/{number}/backup/"))
        running.until_copied(running.post(f"servers/{number}/snapshot/"), "snapshot")
    yield running
    running.discard()


def test_no_request_is_answered_otherwise_than_described(vpsd: Vpsd, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    fuzzed = subprocess.run(
        [
            *(program, "--config-file", _HERE / "schemathesis.toml", "run"),
            *(f"http://{vpsd.listen}/api/v1/openapi.json", "--header", f"Authorization: Bearer {vpsd.token}"),
            *("--phases", _PHASES, "--max-examples", str(_EXAMPLES), "--seed", str(SEED), "--continue-on-failure"),
            *("--no-color", "--workers", "1"),
        ],
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
            "PYTHONPATH": str(_HERE.parents[1]),
            "FUZZ_TOKEN_ID": str(vpsd.get("account/me/")["token"]["id"]),
        },
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert fuzzed.returncode == 0, f"{fuzzed.stdout}\n{again('test_requests.py')}"
    tested = re.search(r"Tested: (\d+)", fuzzed.stdout)
    assert tested is not None
    assert int(tested[1]) == len(ROUTES)
    assert "unexpected error" not in vpsd.said(), again("test_requests.py")
    checked = vpsd.run("check")
    assert checked.returncode == 0, checked.stdout
    books = vpsd.run("billing", "verify")
    assert books.returncode == 0, books.stdout
